//! The hosts of [`baremesh::demo::hosts`], for stories: what a story takes for granted panics where it was asked for,
//! and the panic makes the hosts show the ends of their logs.

use std::ffi::OsStr;
use std::fmt::Display;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::ops::Deref;
use std::process::{Command, ExitStatus};

use baremesh::demo::hosts::{self, Pcap};

#[track_caller]
fn must<T, E: Display>(result: Result<T, E>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => panic!("{error:#}"),
    }
}

macro_rules! wraps {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        pub struct $name(hosts::$name);

        impl From<hosts::$name> for $name {
            fn from(inner: hosts::$name) -> Self {
                Self(inner)
            }
        }

        impl Deref for $name {
            type Target = hosts::$name;

            fn deref(&self) -> &Self::Target {
                &self.0
            }
        }
    };
}

wraps! {
    /// [`hosts::Net`], panicking where a story cannot go on.
    Net
}
wraps! {
    /// [`hosts::Host`], panicking where a story cannot go on.
    Host
}
wraps! {
    /// [`hosts::Process`], panicking where a story cannot go on.
    Process
}
wraps! {
    /// [`hosts::Capture`], panicking where a story cannot go on.
    Capture
}

impl Net {
    /// See [`hosts::Net::host`].
    #[track_caller]
    pub fn host(&self, name: &str, index: u8) -> Host {
        Host(must(self.0.host(name, index)))
    }

    /// See [`hosts::Net::capture`].
    #[track_caller]
    pub fn capture(&self) -> Capture {
        Capture(must(self.0.capture()))
    }
}

impl Host {
    /// See [`hosts::Host::spawn`].
    #[track_caller]
    pub fn spawn(&self, label: &str, command: Command) -> Process {
        Process(must(self.0.spawn(label, command)))
    }

    /// See [`hosts::Host::serve`].
    #[track_caller]
    pub fn serve<A: AsRef<OsStr>>(&self, label: &str, args: impl IntoIterator<Item = A>) -> Process {
        Process(must(self.0.serve(label, args)))
    }

    /// See [`hosts::Host::command_as`].
    #[track_caller]
    pub fn command_as(&self, uid: u32, program: impl AsRef<OsStr>) -> Command {
        must(self.0.command_as(uid, program))
    }

    /// See [`hosts::Host::in_cgroup`].
    #[track_caller]
    pub fn in_cgroup(&self, name: &str, command: &Command) -> Command {
        must(self.0.in_cgroup(name, command))
    }

    /// See [`hosts::Host::cgroup`].
    #[track_caller]
    pub fn cgroup(&self, name: &str) -> String {
        must(self.0.cgroup(name))
    }

    /// See [`hosts::Host::set_nameserver`].
    #[track_caller]
    pub fn set_nameserver(&self, server: impl Into<IpAddr>) {
        must(self.0.set_nameserver(server.into()));
    }

    /// See [`hosts::Host::add_to_hosts`].
    #[track_caller]
    pub fn add_to_hosts(&self, name: &str, address: impl Into<IpAddr>) {
        must(self.0.add_to_hosts(name, address.into()));
    }

    /// See [`hosts::Host::unplug`].
    #[track_caller]
    pub fn unplug(&self) {
        must(self.0.unplug());
    }

    /// See [`hosts::Host::plug_in`].
    #[track_caller]
    pub fn plug_in(&self) {
        must(self.0.plug_in());
    }

    /// See [`hosts::Host::capture`].
    #[track_caller]
    pub fn capture(&self) -> Capture {
        Capture(must(self.0.capture()))
    }

    /// See [`hosts::Host::listen`].
    #[track_caller]
    pub fn listen(&self, address: impl Into<SocketAddr>) -> TcpListener {
        must(self.0.listen(address))
    }

    /// See [`hosts::Host::bind_udp`].
    #[track_caller]
    pub fn bind_udp(&self, address: impl Into<SocketAddr>) -> UdpSocket {
        must(self.0.bind_udp(address))
    }
}

impl Process {
    /// See [`hosts::Process::wait`].
    #[track_caller]
    pub fn wait(&self) -> ExitStatus {
        must(self.0.wait())
    }

    /// See [`hosts::Process::wait_for_output`].
    #[track_caller]
    pub fn wait_for_output(&self, text: &str) {
        must(self.0.wait_for_output(text));
    }
}

impl Capture {
    /// See [`hosts::Capture::stop`].
    #[track_caller]
    pub fn stop(self) -> Pcap {
        must(self.0.stop())
    }
}
