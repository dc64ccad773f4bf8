//! What of gRPC is counted: messages, by their length prefixes (the gRPC specification, "Length-Prefixed-Message").

/// Counts the messages in a stream of bytes, however it is cut.
#[derive(Debug, Clone, Copy, Default)]
pub struct MessageCount {
    /// Messages begun.
    pub messages: u64,
    /// Bytes of the prefix that are there: 1 of flags and 4 of length.
    prefix: u8,
    length: u32,
    /// Bytes of the message that are still to come.
    left: u32,
}

/// Bytes of a message's prefix.
const PREFIX: u8 = 5;

impl MessageCount {
    /// Takes the next bytes.
    pub fn count(&mut self, mut data: &[u8]) {
        while !data.is_empty() {
            if self.left > 0 {
                let part = data.len().min(self.left as usize);
                self.left -= u32::try_from(part).unwrap_or(self.left);
                data = &data[part..];
                continue;
            }
            if self.prefix > 0 {
                self.length = self.length << 8 | u32::from(data[0]);
            }
            self.prefix += 1;
            data = &data[1..];
            if self.prefix == PREFIX {
                self.messages += 1;
                (self.left, self.length, self.prefix) = (self.length, 0, 0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_counted_wherever_the_bytes_are_cut() {
        let bytes = [&[0, 0, 0, 0, 3][..], b"abc", &[1, 0, 0, 0, 0], &[0, 0, 0, 1, 0], &[7; 256]].concat();
        for size in 1..=bytes.len() {
            let mut count = MessageCount::default();
            bytes.chunks(size).for_each(|part| count.count(part));
            assert_eq!(count.messages, 3, "cut every {size}");
        }
    }
}
