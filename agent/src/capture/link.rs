//! The link by which systemd-resolved is told of the mesh's names: it takes servers and domains for a link alone, and
//! not for the loopback one. Ours is one end of a pair that carries nothing. It ends with the agent, and takes with it all
//! that was said of it.

use std::net::Ipv4Addr;

use serde_json::Value;

use super::CaptureError;
use super::command::Tools;

/// The name of the link.
pub const LINK: &str = "baremesh0";
/// The other end of the pair: a link without a carrier is passed over. A dummy would have one alone, but every machine with
/// containers has pairs, and network managers leave them alone.
const OTHER_END: &str = "baremesh0-end";

/// Makes the link, with an address without which resolved takes it for one that leads nowhere.
pub(crate) fn place(tools: &Tools, address: Ipv4Addr) -> Result<(), CaptureError> {
    if !stands(tools)? {
        tools.ip(&["link", "add", LINK, "type", "veth", "peer", "name", OTHER_END])?;
    }
    let address = format!("{address}/32");
    for end in [OTHER_END, LINK] {
        // No link-local address of IPv6, which programs would announce. A kernel without IPv6 knows of no such thing.
        let _ = tools.ip(&["link", "set", "dev", end, "addrgenmode", "none"]);
        if end == LINK {
            tools.ip(&["-4", "address", "replace", &address, "dev", LINK])?;
        }
        tools.ip(&["link", "set", "dev", end, "up"])?;
    }
    Ok(())
}

/// Removes the link, where it stands.
pub(crate) fn withdraw(tools: &Tools) -> Result<(), CaptureError> {
    match stands(tools)? {
        true => tools.ip(&["link", "del", "dev", LINK]).map(drop),
        false => Ok(()),
    }
}

/// Whether it stands. A link of that name that is of another kind is somebody else's.
pub(crate) fn stands(tools: &Tools) -> Result<bool, CaptureError> {
    let arguments = ["-j", "link", "show", "type", "veth"];
    let text = tools.ip(&arguments)?;
    if text.trim().is_empty() {
        return Ok(false);
    }
    let links: Vec<Value> = serde_json::from_str(&text).map_err(|error| CaptureError::Unreadable {
        command: format!("ip {}", arguments.join(" ")),
        detail: error.to_string(),
    })?;
    Ok(links.iter().any(|link| link.get("ifname").and_then(Value::as_str) == Some(LINK)))
}
