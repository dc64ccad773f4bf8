//! Who gives an order: a process of this host that may use the administration socket, or an operator with a credential.

use std::fmt;

use baremesh_ca::ledger::OperatorRecord;
use baremesh_model::name::Label;
use baremesh_model::operator::Role;

/// Who gives an order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Who {
    /// A process of this host, by the kernel's word: root, or a member of the group. It may do everything.
    Local {
        /// Its user.
        uid: u32,
    },
    /// An operator, by the credential.
    Operator {
        /// Its name.
        name: Label,
        /// What it may do.
        role: Role,
    },
}

impl Who {
    /// What it may do.
    pub(super) fn role(&self) -> &Role {
        match self {
            Self::Local { .. } => &Role::Admin,
            Self::Operator { role, .. } => role,
        }
    }
}

impl From<OperatorRecord> for Who {
    fn from(record: OperatorRecord) -> Self {
        Self::Operator { name: record.name, role: record.role }
    }
}

/// As the audit shows it.
impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local { uid } => write!(f, "uid {uid}"),
            Self::Operator { name, .. } => write!(f, "operator {name}"),
        }
    }
}
