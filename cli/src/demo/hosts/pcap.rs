//! The classic pcap file, and the question that recordings are made for: do these bytes occur on the wire, in one
//! packet or spread over several?

use std::fmt;
use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::flows::{self, Flow};

/// The longest frame that is recorded: the kernel hands over segments of up to 64 KiB before they are cut for the
/// wire.
pub(crate) const MAX_FRAME: usize = 1 << 18;

/// Marks a file in host byte order with microseconds (pcap-savefile(5)).
const MAGIC: u32 = 0xa1b2_c3d4;
const VERSION: [u16; 2] = [2, 4];
const FILE_HEADER: usize = 24;
const PACKET_HEADER: usize = 16;
/// Frames begin with an Ethernet header.
const LINKTYPE_ETHERNET: u32 = 1;

/// Two Ethernet addresses of zeros: what the loopback interface writes.
const LOOPBACK_ADDRESSES: [u8; 12] = [0; 12];

/// Recorded packets, in the order in which they were seen. A packet that crossed several interfaces is there several
/// times.
#[derive(Clone, Debug, Default)]
pub struct Pcap {
    packets: Vec<Packet>,
}

/// One recorded frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// When it was seen, since the Unix epoch.
    pub at: Duration,
    /// The frame with its Ethernet header.
    pub frame: Vec<u8>,
}

impl Packet {
    /// Whether it never left the host: it was seen on the loopback interface.
    pub fn is_loopback(&self) -> bool {
        self.frame.starts_with(&LOOPBACK_ADDRESSES)
    }
}

/// Where bytes were found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sighting {
    /// Who sent them to whom; `None` for frames that are neither TCP nor UDP.
    pub flow: Option<Flow>,
    /// Whether they lie in one packet; otherwise they are spread over several of the flow.
    pub in_one_packet: bool,
}

impl fmt::Display for Sighting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.flow {
            Some(flow) => flow.fmt(f)?,
            None => f.write_str("a frame that is neither TCP nor UDP")?,
        }
        f.write_str(if self.in_one_packet { ", in one packet" } else { ", spread over packets" })
    }
}

impl Pcap {
    /// Reads a file that this machine wrote.
    ///
    /// # Errors
    /// If it cannot be read, or is cut off or of another form.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        Self::parse(&bytes).with_context(|| format!("{} is no complete recording", path.display()))
    }

    fn parse(bytes: &[u8]) -> Result<Self> {
        let word = |at: usize| bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes);
        if word(0) != Some(MAGIC) || word(20) != Some(LINKTYPE_ETHERNET) {
            bail!("the header is not that of an Ethernet recording made here");
        }
        let mut packets = Vec::new();
        let mut at = FILE_HEADER;
        while at < bytes.len() {
            let (Some(seconds), Some(micros), Some(length)) = (word(at), word(at + 4), word(at + 8)) else {
                bail!("a packet's header is cut off at byte {at}");
            };
            let start = at + PACKET_HEADER;
            let Some(frame) = bytes.get(start..).and_then(|rest| rest.get(..length as usize)) else {
                bail!("a packet is cut off at byte {start}");
            };
            let time = Duration::from_secs(seconds.into()) + Duration::from_micros(micros.into());
            packets.push(Packet { at: time, frame: frame.to_vec() });
            at = start + frame.len();
        }
        Ok(Self { packets })
    }

    /// The packets.
    pub fn packets(&self) -> &[Packet] {
        &self.packets
    }

    /// Only what was not on a loopback interface.
    #[must_use]
    pub fn off_loopback(mut self) -> Self {
        self.packets.retain(|packet| !packet.is_loopback());
        self
    }

    /// Whether `bytes` occur anywhere: see [`Pcap::find`].
    pub fn contains(&self, bytes: impl AsRef<[u8]>) -> bool {
        self.find(bytes).is_some()
    }

    /// Where `bytes` occur first: in the whole of a frame, headers included, or across the packets of one direction
    /// of a TCP connection, put in order by sequence number. Bytes that are spread over fragments of a datagram are
    /// not found. Nothing is found for no bytes.
    pub fn find(&self, bytes: impl AsRef<[u8]>) -> Option<Sighting> {
        let wanted = bytes.as_ref();
        let whole = self.packets.iter().find(|packet| occurs(wanted, &packet.frame));
        if let Some(packet) = whole {
            return Some(Sighting { flow: flows::flow_of(&packet.frame), in_one_packet: true });
        }
        let streams = flows::streams(&self.packets);
        let spread =
            streams.into_iter().find(|stream| stream.pieces.iter().any(|piece| occurs(wanted, piece)))?;
        Some(Sighting { flow: Some(spread.flow), in_one_packet: false })
    }

    /// How many holes TCP streams have: bytes that were sent, but not seen. Evidence of absence needs none.
    pub fn holes(&self) -> usize {
        flows::streams(&self.packets).iter().map(|stream| stream.pieces.len().saturating_sub(1)).sum()
    }

    /// The distinct flows with payload, in the order of their first packets.
    pub fn flows(&self) -> Vec<Flow> {
        let mut seen = Vec::new();
        for flow in self.packets.iter().filter_map(|packet| flows::flow_of(&packet.frame)) {
            if !seen.contains(&flow) {
                seen.push(flow);
            }
        }
        seen
    }
}

fn occurs(wanted: &[u8], bytes: &[u8]) -> bool {
    !wanted.is_empty() && bytes.windows(wanted.len()).any(|window| window == wanted)
}

/// Begins a file.
pub(crate) fn write_header(file: &mut impl Write) -> io::Result<()> {
    file.write_all(&MAGIC.to_ne_bytes())?;
    for number in VERSION {
        file.write_all(&number.to_ne_bytes())?;
    }
    // Time zone and accuracy are always 0.
    for number in [0, 0, MAX_FRAME as u32, LINKTYPE_ETHERNET] {
        file.write_all(&number.to_ne_bytes())?;
    }
    Ok(())
}

/// Adds a packet that was seen at `now` since the epoch.
pub(crate) fn write_packet(file: &mut impl Write, now: Duration, frame: &[u8]) -> io::Result<()> {
    let length = frame.len() as u32;
    // The format has 32 bits for seconds: enough until 2106.
    for number in [now.as_secs() as u32, now.subsec_micros(), length, length] {
        file.write_all(&number.to_ne_bytes())?;
    }
    file.write_all(frame)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recording(frames: &[&[u8]]) -> Vec<u8> {
        let mut file = Vec::new();
        write_header(&mut file).expect("a vector takes all");
        for frame in frames {
            write_packet(&mut file, Duration::from_micros(1_500_000), frame).expect("a vector takes all");
        }
        file
    }

    #[test]
    fn what_was_written_is_read() {
        let frames: [&[u8]; 3] = [b"one", b"", b"three"];
        let read = Pcap::parse(&recording(&frames)).expect("it is complete");
        let expected =
            frames.map(|frame| Packet { at: Duration::from_micros(1_500_000), frame: frame.to_vec() });
        assert_eq!(read.packets(), expected);
        assert!(read.contains("hre") && read.contains(b"one"));
        assert!(!read.contains("onethree") && !read.contains("") && !read.contains("a much longer text"));
    }

    #[test]
    fn a_recording_that_is_cut_off_is_refused() {
        let whole = recording(&[b"payload"]);
        for length in [0, 10, FILE_HEADER + 3, whole.len() - 1] {
            assert!(Pcap::parse(&whole[..length]).is_err(), "{length}");
        }
        assert!(Pcap::parse(&whole[..FILE_HEADER]).is_ok(), "no packet is no error");
    }

    #[test]
    fn loopback_is_told_by_its_addresses() {
        let mut wire = vec![2; 12];
        wire.extend(b"\x08\x00wire");
        let mut loopback = vec![0; 12];
        loopback.extend(b"\x08\x00loop");
        let all = Pcap::parse(&recording(&[&wire, &loopback])).expect("it is complete");
        let off = all.clone().off_loopback();
        assert!(all.contains("loop") && !off.contains("loop") && off.contains("wire"));
    }
}
