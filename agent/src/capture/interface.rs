//! Names of interfaces, as they may stand in a rule.

use std::fmt;
use std::str::FromStr;

use super::link::LINK;

/// The longest name that the kernel takes (`IFNAMSIZ` without the final zero byte).
const LONGEST: usize = 15;

/// A bridge whose containers or guests are captured: letters, digits, `-`, `_` and `.`, so that nothing in it means
/// something to nft.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Interface(String);

/// Why a name was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InterfaceError {
    /// It is no name of an interface.
    #[error("`{0}` is no interface: 1 to {LONGEST} letters, digits, `-`, `_` and `.`")]
    Name(String),
    /// What comes from there is not a container's.
    #[error("`{0}` leads to no container: name the bridge, such as docker0")]
    NoBridge(String),
}

impl Interface {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Interface {
    type Err = InterfaceError;

    fn from_str(text: &str) -> Result<Self, InterfaceError> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        if text.is_empty() || text.len() > LONGEST || !text.bytes().all(plain) || [".", ".."].contains(&text)
        {
            return Err(InterfaceError::Name(text.to_owned()));
        }
        if ["lo", LINK].contains(&text) {
            return Err(InterfaceError::NoBridge(text.to_owned()));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for Interface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_names_of_interfaces_and_nothing_that_nft_would_read() {
        for good in ["docker0", "br-1a2b3c", "virbr0", "lxc.br_0", "abcdefghijklmno"] {
            assert_eq!(good.parse::<Interface>().map(|name| name.to_string()), Ok(good.to_owned()));
        }
        for bad in ["", "abcdefghijklmnop", "br*", "br\" accept", "br 0", "br/0", ".", "..", "brü"] {
            assert_eq!(bad.parse::<Interface>(), Err(InterfaceError::Name(bad.to_owned())));
        }
        for nowhere in ["lo", "baremesh0"] {
            assert_eq!(nowhere.parse::<Interface>(), Err(InterfaceError::NoBridge(nowhere.to_owned())));
        }
    }
}
