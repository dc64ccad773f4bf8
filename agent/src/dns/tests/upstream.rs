//! A name server that does as it is told, and remembers what it was asked.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::net::{TcpListener, UdpSocket};

use super::super::framing::{read_message, write_message};

type Seen = Arc<Mutex<Vec<Vec<u8>>>>;

pub(super) struct Upstream {
    pub(super) address: SocketAddr,
    seen: Seen,
}

impl Upstream {
    /// `says` gives the messages that are sent back, over UDP and TCP alike.
    pub(super) async fn start(says: impl Fn(&[u8]) -> Vec<Vec<u8>> + Clone + Send + Sync + 'static) -> Self {
        // The free TCP port may be some other test's for UDP.
        let (listener, address, socket) = loop {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
            let address = listener.local_addr().expect("bound");
            if let Ok(socket) = UdpSocket::bind(address).await {
                break (listener, address, socket);
            }
        };
        let seen = Seen::default();
        tokio::spawn(datagrams(socket, seen.clone(), says.clone()));
        tokio::spawn(connections(listener, seen.clone(), says));
        Self { address, seen }
    }

    pub(super) fn seen(&self) -> Vec<Vec<u8>> {
        self.seen.lock().expect("no panic while held").clone()
    }
}

async fn datagrams(socket: UdpSocket, seen: Seen, says: impl Fn(&[u8]) -> Vec<Vec<u8>>) {
    let mut buffer = vec![0; 65_535];
    while let Ok((length, client)) = socket.recv_from(&mut buffer).await {
        seen.lock().expect("no panic while held").push(buffer[..length].to_vec());
        for message in says(&buffer[..length]) {
            let _ = socket.send_to(&message, client).await;
        }
    }
}

async fn connections(listener: TcpListener, seen: Seen, says: impl Fn(&[u8]) -> Vec<Vec<u8>>) {
    while let Ok((mut stream, _)) = listener.accept().await {
        while let Ok(Some(query)) = read_message(&mut stream).await {
            seen.lock().expect("no panic while held").push(query.clone());
            for message in says(&query) {
                let _ = write_message(&mut stream, &message).await;
            }
        }
    }
}
