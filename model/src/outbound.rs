//! What a workload may open connections to: Istio's `outboundTrafficPolicy`.

/// Whether what the registry does not know is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum OutboundPolicy {
    /// It is, as without a mesh.
    #[default]
    AllowAny,
    /// It is not.
    RegistryOnly,
}

impl OutboundPolicy {
    /// The mode's name as written.
    pub fn name(self) -> &'static str {
        match self {
            Self::AllowAny => "ALLOW_ANY",
            Self::RegistryOnly => "REGISTRY_ONLY",
        }
    }

    /// The mode of that name.
    pub fn of_name(name: &str) -> Option<Self> {
        [Self::AllowAny, Self::RegistryOnly].into_iter().find(|mode| mode.name() == name)
    }
}
