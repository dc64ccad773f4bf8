//! A server that shows a stolen or made-up certificate, and keeps what is said to it.

use std::io::Read as _;
use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use baremesh_ca::issued::Issued;
use baremesh_ca::tls::{TrustBundle, control_server_config, single_certificate};
use baremesh_model::name::Domain;
use baremesh_tests::{Host, Mesh, wait_until};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

/// What the mesh of a story trusts.
pub fn bundle_of(mesh: &Mesh) -> Arc<TrustBundle> {
    let roots = std::fs::read(mesh.control.path("/var/lib/baremesh/ca/root.crt")).expect("the mesh's root");
    let domain = Domain::new("mesh.internal").expect("a domain");
    Arc::new(TrustBundle::from_pem(domain, &roots).expect("a bundle"))
}

/// A certificate with its key from a host's disk.
pub fn stolen(pem: &Path) -> Issued {
    Issued::from_pem(&std::fs::read_to_string(pem).expect("a certificate to steal")).expect("a certificate")
}

#[derive(Default)]
struct Told {
    attempts: usize,
    heard: Vec<u8>,
}

/// The server.
pub struct Impostor(Arc<Mutex<Told>>);

impl Impostor {
    /// Listens on `host` with the certificate at `pem`.
    pub fn listen(host: &Host, port: u16, pem: &Path, mesh: &Mesh) -> Self {
        let mut issued = stolen(pem);
        // The control server shows the root as well, by which a host that joins knows it.
        issued.chain.push(bundle_of(mesh).roots()[0].clone());
        let key = issued.certified_key().expect("a key that fits");
        let config = Arc::new(control_server_config(single_certificate(key), bundle_of(mesh)));
        let listener = host.listen((Ipv4Addr::UNSPECIFIED, port));
        let told = Arc::new(Mutex::new(Told::default()));
        let impostor = Self(Arc::clone(&told));
        // Ends with the process: the listener belongs to a host that does.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let heard = serve(stream, &config);
                let mut told = told.lock().expect("no thread panics with it");
                told.attempts += 1;
                told.heard.extend(heard);
            }
        });
        impostor
    }

    /// Waits until so many connections were tried.
    #[track_caller]
    pub fn wait_for_attempts(&self, count: usize) {
        wait_until("somebody comes to the impostor", || self.0.lock().expect("no panic").attempts >= count);
    }

    /// What was said after a handshake.
    pub fn heard(&self) -> Vec<u8> {
        self.0.lock().expect("no panic").heard.clone()
    }
}

fn serve(stream: TcpStream, config: &Arc<ServerConfig>) -> Vec<u8> {
    let _ = stream.set_read_timeout(Some(Duration::from_secs(5)));
    let Ok(connection) = ServerConnection::new(Arc::clone(config)) else { return Vec::new() };
    let mut heard = Vec::new();
    // A refused certificate ends this with an alert.
    let _ = StreamOwned::new(connection, stream).read_to_end(&mut heard);
    heard
}
