//! Operators: who may look, who may change the resources of some namespaces, who may do everything. What an order needs,
//! and whether a role has it, is decided here; whose certificate it is, the authority says.

use std::collections::BTreeSet;
use std::fmt;

use crate::identity::RESERVED_NAMESPACES;
use crate::name::Label;

/// Namespaces that one editor may have.
pub const MAX_NAMESPACES: usize = 64;

/// What an operator may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// Look at resources, hosts and status.
    Viewer,
    /// That, and change resources of these namespaces, of which there is at least one.
    Editor(BTreeSet<Label>),
    /// Everything: mesh-wide resources, grants, tokens, hosts, operators, the audit.
    Admin,
}

/// Why a role cannot be given so.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RoleError {
    /// Not the name of a role.
    #[error("`{0}` is no role: there are viewer, editor and admin")]
    Unknown(String),
    /// An editor of nothing.
    #[error("an editor needs 1 to {MAX_NAMESPACES} namespaces (`--namespace shop`), not {0}")]
    Namespaces(usize),
    /// A role that is for the whole mesh.
    #[error("a {0} is one of the whole mesh: namespaces are for editors")]
    OfNamespaces(&'static str),
    /// A namespace that the mesh keeps for itself.
    #[error("the namespace `{0}` is reserved: it holds no resources")]
    Reserved(Label),
}

/// What an order needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// To look.
    View,
    /// To change resources; which ones, is decided for each of them.
    Change,
    /// Everything else.
    Administer,
}

impl Role {
    /// The role of that name, for those namespaces.
    pub fn new(name: &str, namespaces: BTreeSet<Label>) -> Result<Self, RoleError> {
        let role = match name {
            "viewer" => Self::Viewer,
            "admin" => Self::Admin,
            "editor" => {
                if namespaces.is_empty() || namespaces.len() > MAX_NAMESPACES {
                    return Err(RoleError::Namespaces(namespaces.len()));
                }
                let reserved = |namespace: &&Label| RESERVED_NAMESPACES.contains(&namespace.as_str());
                if let Some(reserved) = namespaces.iter().find(reserved) {
                    return Err(RoleError::Reserved(reserved.clone()));
                }
                return Ok(Self::Editor(namespaces));
            }
            _ => return Err(RoleError::Unknown(name.to_owned())),
        };
        if namespaces.is_empty() { Ok(role) } else { Err(RoleError::OfNamespaces(role.name())) }
    }

    /// Its name.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Editor(_) => "editor",
            Self::Admin => "admin",
        }
    }

    /// The namespaces that it is for; none where it is for the whole mesh.
    pub fn namespaces(&self) -> impl Iterator<Item = &Label> {
        match self {
            Self::Editor(namespaces) => Some(namespaces.iter()),
            Self::Viewer | Self::Admin => None,
        }
        .into_iter()
        .flatten()
    }

    /// Whether it may give an order of that kind at all.
    pub fn meets(&self, need: Need) -> bool {
        match self {
            Self::Viewer => need == Need::View,
            Self::Editor(_) => need != Need::Administer,
            Self::Admin => true,
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        let mut before = " of ";
        for namespace in self.namespaces() {
            write!(f, "{before}{namespace}")?;
            before = ", ";
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn role(name: &str, namespaces: &[&str]) -> Result<Role, RoleError> {
        Role::new(name, namespaces.iter().map(|name| Label::new(name).expect("a label")).collect())
    }

    #[test]
    fn a_role_is_for_the_mesh_or_for_namespaces() {
        for name in ["viewer", "admin"] {
            assert_eq!(role(name, &[]).expect("a role").name(), name);
            assert!(matches!(role(name, &["shop"]), Err(RoleError::OfNamespaces(_))));
        }
        assert_eq!(role("editor", &["shop", "web"]).expect("a role").to_string(), "editor of shop, web");
        assert_eq!(role("editor", &[]), Err(RoleError::Namespaces(0)));
        assert!(matches!(role("editor", &["shop", "operators"]), Err(RoleError::Reserved(_))));
        assert!(matches!(role("root", &[]), Err(RoleError::Unknown(_))));
        let many: BTreeSet<_> =
            (0..=MAX_NAMESPACES).map(|n| Label::new(&format!("n{n}")).expect("a label")).collect();
        assert!(Role::new("editor", many).is_err());
    }

    #[test]
    fn each_role_has_what_the_one_below_has() {
        let check = |role: Role, expected: [bool; 3]| {
            assert_eq!([Need::View, Need::Change, Need::Administer].map(|need| role.meets(need)), expected);
        };
        check(Role::Viewer, [true, false, false]);
        check(role("editor", &["shop"]).expect("a role"), [true, true, false]);
        check(Role::Admin, [true, true, true]);
    }
}
