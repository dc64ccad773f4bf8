//! What stories about HTTP begin with: a host `web` whose programs call, and instances of the service `reviews` on a
//! host each: `v1` with the label `version=v1`, and so on.

use baremesh_tests::{Instance, Member, Mesh};

/// How `web` calls it.
pub const REVIEWS: &str = "http://reviews";

/// A caller, and hosts for instances.
pub struct Town {
    /// Its programs are the service `web`.
    pub web: Member,
    /// Each may run an instance.
    pub hosts: Vec<Member>,
    /// The mesh.
    pub mesh: Mesh,
}

impl Town {
    /// A mesh with the caller and so many hosts, on which nothing serves yet.
    #[track_caller]
    pub fn new(name: &str, hosts: u8) -> Self {
        let mesh = Mesh::new(name);
        let web = mesh.member("web", 1, &["*"]);
        let hosts = (1..=hosts).map(|number| mesh.member(&format!("host-{number}"), 1 + number, &["*"]));
        let hosts = hosts.collect();
        web.register("web", ["--port", "80", "--user", "0"]);
        Self { web, hosts, mesh }
    }

    /// An instance of `reviews` on every host.
    #[track_caller]
    pub fn open<const N: usize>(&self) -> [Instance<'_>; N] {
        self.open_with("http", |_| Vec::new())
    }

    /// The same with another protocol, and for each number from 1 with further arguments of its registration.
    #[track_caller]
    pub fn open_with<'a, const N: usize>(
        &self,
        protocol: &str,
        further: impl Fn(usize) -> Vec<&'a str>,
    ) -> [Instance<'_>; N] {
        assert_eq!(self.hosts.len(), N, "an instance a host");
        let instances = std::array::from_fn(|index| {
            let (version, label) = (format!("v{}", index + 1), format!("version=v{}", index + 1));
            let arguments = [&["--protocol", protocol, "--label", &label], &further(index + 1)[..]].concat();
            self.hosts[index].web("reviews", &version, &arguments)
        });
        self.web.wait_for_endpoints("reviews.default", N);
        self.mesh.wait_until_in_force();
        instances
    }
}

/// A VirtualService for `reviews` with these routes, as TOML values.
pub fn routes(http: &str) -> String {
    format!("[[VirtualService]]\nname = \"reviews\"\nhosts = [\"reviews\"]\nhttp = [{http}]\n")
}

/// A DestinationRule for `reviews` with the subsets `v1` and `v2`, and with no policy.
pub fn subsets() -> String {
    rule("")
}

/// A DestinationRule for `reviews` with this policy, and with the subsets `v1` and `v2`.
pub fn rule(policy: &str) -> String {
    let policy = if policy.is_empty() { String::new() } else { format!("trafficPolicy = {policy}\n") };
    let subsets = ["v1", "v2"]
        .map(|version| format!("{{ name = \"{version}\", labels = {{ version = \"{version}\" }} }}"));
    format!(
        "[[DestinationRule]]\nname = \"reviews\"\nhost = \"reviews\"\nsubsets = [{}]\n{policy}",
        subsets.join(", ")
    )
}

/// A destination, to stand in a list of routes.
pub fn to(subset: &str, weight: u32) -> String {
    format!("{{ destination = {{ host = \"reviews\", subset = \"{subset}\" }}, weight = {weight} }}")
}
