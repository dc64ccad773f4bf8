//! Accepting. While the agent drains, what arrives is reset at once instead of waiting in a queue that nobody will
//! empty; once another process has taken over, it waits for that one. A process that has run out of descriptors waits instead of spinning, and recovers by itself.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use tokio::net::{TcpListener, TcpStream};

use super::relay::reset_on_close;
use super::{Phase, Worker};

/// How long to wait when the process has no descriptor left for a new connection.
const EXHAUSTED_WAIT: Duration = Duration::from_millis(100);

/// Hands every accepted connection to `carry`, each in a task of its own: a panic ends that connection alone.
pub async fn loop_over<C, F>(worker: Arc<Worker>, listener: TcpListener, carry: C)
where
    C: Fn(Arc<Worker>, TcpStream) -> F + Send + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let accepting = Arc::clone(&worker.accepted);
    let mut warned = false;
    let mut phase = worker.shared.phase.clone();
    let mut handed_over = pin!(phase.wait_for(|phase| *phase == Phase::HandedOver));
    loop {
        let accepted = tokio::select! {
            biased;
            // An error means that the agent itself is gone.
            _ = &mut handed_over => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) if worker.shared.phase.borrow().serves_no_more() => reset_on_close(&stream),
            Ok((stream, _)) => {
                warned = false;
                // Boxed, so that the task that holds both is not twice as large.
                let (accepted, carried) =
                    (Arc::clone(&accepting), Box::pin(carry(Arc::clone(&worker), stream)));
                tokio::spawn(async move {
                    carried.await;
                    drop(accepted);
                });
            }
            Err(error) if is_of_one_connection(&error) => {}
            // Somebody shut the listener, and it will never give a connection again. The worker no longer answers for it.
            Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {
                tracing::error!("a listener was shut by another process: this agent has to be started anew");
                return;
            }
            Err(error) => {
                if !warned {
                    tracing::error!(%error, "no connection can be accepted: raise LimitNOFILE of the unit, or lower the load");
                    warned = true;
                }
                tokio::time::sleep(EXHAUSTED_WAIT).await;
            }
        }
    }
}

/// Errors that accept(2) reports about a connection that is gone already.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}
