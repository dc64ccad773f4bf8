//! Where a request comes from, as far as proxies before are believed, and what a program of this host is told of it in
//! `x-forwarded-for`: what Envoy does where it takes requests from outside (`use_remote_address`, `xff_num_trusted_hops`).
//! The called side does it, since it alone knows by proof whom the connection comes from.

use std::net::{IpAddr, SocketAddr};

use baremesh_model::http::Headers;
use baremesh_model::http::headers::may_be_read_as;

/// Where proxies write whom they had a request from, each behind the one before.
const FORWARDED_FOR: &str = "x-forwarded-for";

/// Where a request comes from that arrived from `peer` behind so many trusted proxies. Each of them wrote whom it had the
/// request from, the last one at the end of the list; the first is the client's. A list that is too short, or that holds
/// something else than addresses there, says nothing, and the request comes from `peer`.
pub fn client_of(headers: &Headers, trusted_proxies: u32, peer: IpAddr) -> IpAddr {
    client(&believed(headers, trusted_proxies), trusted_proxies, peer)
}

/// Leaves of the list what is believed, puts `peer` behind it, and says where the request comes from. What some programs
/// read as the same field goes.
pub fn tell(headers: &mut Headers, trusted_proxies: u32, peer: IpAddr) -> IpAddr {
    let believed = believed(headers, trusted_proxies);
    headers.retain(|name| !may_be_read_as(name.as_bytes(), FORWARDED_FOR));
    let mut list = String::new();
    for address in believed.iter().rev() {
        list.push_str(&address.to_string());
        list.push_str(", ");
    }
    list.push_str(&peer.to_string());
    // Addresses have no character that a field may not have.
    let _ = headers.append(FORWARDED_FOR, list.as_bytes());
    client(&believed, trusted_proxies, peer)
}

/// Takes the list away, and what some programs read as the same field.
pub fn forget(headers: &mut Headers) {
    headers.retain(|name| !may_be_read_as(name.as_bytes(), FORWARDED_FOR));
}

fn client(believed: &[IpAddr], trusted_proxies: u32, peer: IpAddr) -> IpAddr {
    let is_whole = believed.len() as u64 == u64::from(trusted_proxies);
    believed.last().copied().filter(|_| is_whole).unwrap_or(peer)
}

/// What trusted proxies wrote, from the last one on.
fn believed(headers: &Headers, trusted_proxies: u32) -> Vec<IpAddr> {
    if trusted_proxies == 0 {
        return Vec::new();
    }
    let lines: Vec<_> = headers.get_all(FORWARDED_FOR).collect();
    let parts = lines.into_iter().rev().flat_map(|line| line.rsplit(|byte| *byte == b','));
    let most = usize::try_from(trusted_proxies).unwrap_or(usize::MAX);
    parts.map_while(address).take(most).collect()
}

/// An address, as proxies write it: some with a port, and then IPv6 in brackets.
fn address(part: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(part).ok()?.trim_matches([' ', '\t']);
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let address =
        bare.parse().ok().or_else(|| text.parse::<SocketAddr>().ok().map(|with_port| with_port.ip()));
    address.map(|address: IpAddr| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: [u8; 4] = [10, 0, 0, 9];

    #[track_caller]
    fn check(lines: &[&str], trusted_proxies: u32, (client, told): (&str, &str)) {
        let mut headers = Headers::default();
        for line in lines {
            headers.append("X-Forwarded-For", line.as_bytes()).expect("a field");
        }
        let client: IpAddr = client.parse().expect("an address");
        assert_eq!(client_of(&headers, trusted_proxies, PEER.into()), client, "{lines:?}");
        headers.append("x_forwarded-for", b"1.1.1.1").expect("a field");
        headers.append("x-forwarded_for", b"1.1.1.1").expect("a field");
        assert_eq!(tell(&mut headers, trusted_proxies, PEER.into()), client, "{lines:?}");
        assert_eq!(headers.text(FORWARDED_FOR).as_deref(), Some(told), "{lines:?}");
        assert_eq!(headers.len(), 1);
    }

    #[test]
    fn without_trusted_proxies_nothing_is_believed() {
        for lines in [&[][..], &["192.0.2.7"], &["192.0.2.7, 192.0.2.8", "192.0.2.9"], &["unknown"]] {
            check(lines, 0, ("10.0.0.9", "10.0.0.9"));
        }
    }

    #[test]
    fn the_trusted_hop_is_counted_from_the_right() {
        check(&["192.0.2.7"], 1, ("192.0.2.7", "192.0.2.7, 10.0.0.9"));
        check(&["6.6.6.6, 192.0.2.7"], 1, ("192.0.2.7", "192.0.2.7, 10.0.0.9"));
        check(&["6.6.6.6", "5.5.5.5 ,\t192.0.2.7"], 2, ("5.5.5.5", "5.5.5.5, 192.0.2.7, 10.0.0.9"));
        check(&["2001:db8::7"], 1, ("2001:db8::7", "2001:db8::7, 10.0.0.9"));
        check(&["[2001:db8::7]:443"], 1, ("2001:db8::7", "2001:db8::7, 10.0.0.9"));
        check(&["[2001:db8::7]"], 1, ("2001:db8::7", "2001:db8::7, 10.0.0.9"));
        check(&["192.0.2.7:1234"], 1, ("192.0.2.7", "192.0.2.7, 10.0.0.9"));
        check(&["::ffff:192.0.2.7"], 1, ("192.0.2.7", "192.0.2.7, 10.0.0.9"));
    }

    #[test]
    fn a_list_that_is_too_short_or_holds_something_else_says_nothing() {
        check(&[], 1, ("10.0.0.9", "10.0.0.9"));
        check(&["192.0.2.7"], 2, ("10.0.0.9", "192.0.2.7, 10.0.0.9"));
        check(&["192.0.2.7"], u32::MAX, ("10.0.0.9", "192.0.2.7, 10.0.0.9"));
        for odd in
            ["unknown", "_hidden", "", "192.0.2.7,", "192.0.2.7, ,", "192.0.2.300", "1", "0x7f.1", "a\u{e4}"]
        {
            check(&[odd], 1, ("10.0.0.9", "10.0.0.9"));
        }
        check(&["5.5.5.5, nobody, 192.0.2.7"], 3, ("10.0.0.9", "192.0.2.7, 10.0.0.9"));
    }
}
