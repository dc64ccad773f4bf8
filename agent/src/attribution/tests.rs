//! Real connections, users and cgroups, through the whole of attribution.

use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::cgroup::Hierarchy;
use super::*;

/// How long a test waits for what the kernel does in the background.
const PATIENCE: Duration = Duration::from_secs(60);

fn table(registrations: &[(&str, &'static str)]) -> CallerTable<&'static str> {
    CallerTable::new(registrations.iter().map(|(text, key)| (callers::tests::matcher(text), *key)))
}

async fn ask(
    attributor: &mut Attributor,
    accepted: &TcpStream,
    table: &CallerTable<&'static str>,
) -> Result<Caller<&'static str>, CallerUnknown> {
    match attributor.who(accepted, accepted.local_addr().expect("open"), table)? {
        Who::Known(caller) => Ok(caller),
        Who::Pending(pending) => pending.resolve(table).await,
    }
}

/// A part of the real cgroup2 hierarchy that a test may fill, as if it were all of it.
struct Subtree {
    top: PathBuf,
    made: Vec<PathBuf>,
}

impl Subtree {
    /// `None` for those who may not make cgroups.
    fn new() -> Option<Self> {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        if !rustix::process::geteuid().is_root() {
            return None;
        }
        let mount = Hierarchy::find().expect("root sees the cgroup2 hierarchy").directory;
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let top = mount.join(format!("baremesh-test-{}-{number}", std::process::id()));
        std::fs::create_dir(&top).expect("root may make cgroups");
        Some(Self { top, made: Vec::new() })
    }

    fn cgroups(&self) -> Arc<Cgroups> {
        let [path, manager] = [CgroupPath::root(), CgroupPath::root()];
        Cgroups::of(Hierarchy { directory: self.top.clone(), path, manager })
    }

    fn make(&mut self, path: &str) {
        let mut directory = self.top.clone();
        for part in path.split('/').skip(1) {
            directory.push(part);
            if !directory.exists() {
                std::fs::create_dir(&directory).expect("root may make cgroups");
                self.made.push(directory.clone());
            }
        }
    }

    fn remove(&self, path: &str) {
        remove(&self.top.join(&path[1..]));
    }

    /// A process in `path` that connects to `listener` and stays until the other end closes.
    fn connect_from(&self, path: &str, listener: &TcpListener) -> Caught {
        let address = listener.local_addr().expect("bound");
        let procs = self.top.join(&path[1..]).join("cgroup.procs");
        let script = format!(
            "echo $$ >'{}' && exec 3<>/dev/tcp/{}/{} && read <&3",
            procs.display(),
            address.ip(),
            address.port()
        );
        let child = Command::new("bash").args(["-c", &script]).spawn().expect("bash is installed");
        Caught { accepted: listener.accept().expect("connected").0, child }
    }
}

impl Drop for Subtree {
    fn drop(&mut self) {
        for directory in self.made.iter().rev() {
            remove(directory);
        }
        remove(&self.top);
    }
}

/// The kernel keeps a cgroup until its last process is reaped.
fn remove(directory: &PathBuf) {
    let start = Instant::now();
    while directory.exists() && std::fs::remove_dir(directory).is_err() {
        assert!(start.elapsed() < PATIENCE, "{} stays busy", directory.display());
        std::thread::yield_now();
    }
}

/// An accepted connection and the process that made it.
struct Caught {
    accepted: TcpStream,
    child: Child,
}

impl Drop for Caught {
    fn drop(&mut self) {
        let _ = self.accepted.shutdown(std::net::Shutdown::Both);
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn users_are_told_apart_without_any_cgroup() {
    let me = rustix::process::getuid().as_raw();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let _client = TcpStream::connect(listener.local_addr().expect("bound")).expect("listening");
    let (accepted, _) = listener.accept().expect("connected");
    let mut attributor = Attributor::new(Cgroups::of_system()).expect("a netlink socket");
    let [me, somebody] = [me, me + 1].map(|uid| uid.to_string());
    let mine = table(&[(&me, "mine"), (&somebody, "other")]);
    assert_eq!(ask(&mut attributor, &accepted, &mine).await, Ok(Caller::Service("mine")));
    let other = table(&[(&somebody, "other")]);
    assert_eq!(ask(&mut attributor, &accepted, &other).await, Ok(Caller::Host));
    let both = table(&[(&me, "mine"), (&me, "other")]);
    assert_eq!(ask(&mut attributor, &accepted, &both).await, Err(Ambiguous.into()));
}

#[tokio::test]
async fn a_connection_that_was_reset_has_no_caller() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let start = Instant::now();
    // The same port again, by whomever: the first connection must not be taken for it.
    let (mut accepted, again) = loop {
        let client = TcpStream::connect(listener.local_addr().expect("bound")).expect("listening");
        let (accepted, port) = listener.accept().expect("connected");
        let client = socket2::Socket::from(client);
        client.set_linger(Some(Duration::ZERO)).expect("open");
        drop(client);
        let again =
            socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
        match again.bind(&port.into()) {
            Ok(()) => break (accepted, again),
            // Another program of this machine was faster.
            Err(error) => assert!(start.elapsed() < PATIENCE, "still {error}"),
        }
    };
    again.connect(&listener.local_addr().expect("bound").into()).expect("listening");
    let (second, _) = listener.accept().expect("connected");

    let mut attributor = Attributor::new(Cgroups::of_system()).expect("a netlink socket");
    let anybody = table(&[(&rustix::process::getuid().as_raw().to_string(), "mine")]);
    assert_eq!(ask(&mut attributor, &second, &anybody).await, Ok(Caller::Service("mine")));
    let address = listener.local_addr().expect("bound");
    let refused = attributor.who(&accepted, address, &anybody).expect_err("it was reset");
    assert_eq!((&refused, refused.reason()), (&LookupError::Gone.into(), "closed"));
    assert!(accepted.read(&mut [0]).is_err());
}

#[tokio::test]
async fn the_real_hierarchy_places_this_very_process() {
    if Hierarchy::find().is_err() {
        return; // no cgroup2 here, as in some containers
    }
    let cgroups = Cgroups::of_system();
    let start = Instant::now();
    let count = cgroups.learn().await.expect("readable");
    eprintln!("a walk over {count} cgroups: {:?}", start.elapsed());
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let _client = TcpStream::connect(listener.local_addr().expect("bound")).expect("listening");
    let (accepted, _) = listener.accept().expect("connected");
    let mut attributor = Attributor::new(Arc::clone(&cgroups)).expect("a netlink socket");
    let owner = attributor.owner(&accepted, accepted.local_addr().expect("open")).expect("held by this test");
    let own = std::fs::read_to_string("/proc/self/cgroup").expect("readable");
    let own = own.lines().find_map(|line| line.strip_prefix("0::")).expect("in a cgroup").to_owned();
    let place = cgroups.known(owner.cgroup.expect("Linux 5.8 or later")).expect("learned").expect("exists");
    assert_eq!(place.path.to_string(), own);
}

#[tokio::test]
async fn units_and_their_subgroups_are_services_and_users_units_are_not() {
    let Some(mut subtree) = Subtree::new() else { return };
    let users_unit = "/user.slice/user-1000.slice/user@1000.service/app.slice/orders.service";
    let cases = [
        ("/system.slice/orders.service", Caller::Service("orders")),
        ("/system.slice/orders.service/worker/1", Caller::Service("orders")),
        ("/shop.slice/shop-front.slice/web@1.service", Caller::Service("web")),
        ("/machine.slice/box.scope/payload", Caller::Service("box")),
        ("/machine.slice/box.scope", Caller::Host),
        ("/system.slice/evil.service/orders.service", Caller::Host),
        (users_unit, Caller::Host),
    ];
    for (path, _) in cases {
        subtree.make(path);
    }
    let registered = table(&[
        ("orders.service", "orders"),
        ("web@1.service+0", "web"),
        ("/machine.slice/box.scope/payload", "box"),
        ("evil.service+1000", "evil"),
    ]);
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let mut attributor = Attributor::new(subtree.cgroups()).expect("a netlink socket");
    for (path, expected) in cases {
        let caught = subtree.connect_from(path, &listener);
        assert_eq!(ask(&mut attributor, &caught.accepted, &registered).await, Ok(expected), "{path}");
    }
}

#[tokio::test]
async fn a_restarted_unit_is_known_again_and_a_removed_cgroup_is_refused() {
    let Some(mut subtree) = Subtree::new() else { return };
    let path = "/system.slice/orders.service";
    subtree.make(path);
    let registered = table(&[("orders.service", "orders")]);
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let cgroups = subtree.cgroups();
    let mut attributor = Attributor::new(Arc::clone(&cgroups)).expect("a netlink socket");
    let first = {
        let caught = subtree.connect_from(path, &listener);
        let address = listener.local_addr().expect("bound");
        let first = attributor.owner(&caught.accepted, address).expect("held").cgroup.expect("told");
        let fresh = attributor.who(&caught.accepted, address, &registered).expect("held");
        assert!(matches!(fresh, Who::Pending(_)), "a cgroup never seen takes a walk");
        assert_eq!(ask(&mut attributor, &caught.accepted, &registered).await, Ok(Caller::Service("orders")));
        let seen = attributor.who(&caught.accepted, address, &registered).expect("held");
        assert!(matches!(seen, Who::Known(Caller::Service("orders"))), "one seen is remembered");
        first
    };
    subtree.remove(path);
    subtree.make(path);
    let caught = subtree.connect_from(path, &listener);
    assert_eq!(ask(&mut attributor, &caught.accepted, &registered).await, Ok(Caller::Service("orders")));
    assert_eq!(cgroups.find(first).await, Err(CgroupError::Removed(first)));
    assert_eq!(cgroups.known(first), Some(Err(CgroupError::Removed(first))), "without another walk");
}

#[tokio::test]
async fn a_hundred_callers_of_new_cgroups_are_all_placed() {
    let Some(mut subtree) = Subtree::new() else { return };
    for unit in 0..100 {
        subtree.make(&format!("/system.slice/unit-{unit}.service"));
    }
    let cgroups = subtree.cgroups();
    let ids = (0..100).map(|unit| {
        use std::os::unix::fs::MetadataExt;
        let directory = subtree.top.join(format!("system.slice/unit-{unit}.service"));
        CgroupId(std::fs::metadata(directory).expect("made").ino())
    });
    let waiting: Vec<_> = ids
        .map(|id| {
            let cgroups = Arc::clone(&cgroups);
            tokio::spawn(async move { cgroups.find(id).await })
        })
        .collect();
    for (unit, place) in waiting.into_iter().enumerate() {
        let place = place.await.expect("no panic").expect("exists");
        assert_eq!(place.path.to_string(), format!("/system.slice/unit-{unit}.service"));
    }
    let start = Instant::now();
    assert_eq!(cgroups.learn().await, Ok(102));
    eprintln!("a walk over 102 cgroups: {:?}", start.elapsed());
}
