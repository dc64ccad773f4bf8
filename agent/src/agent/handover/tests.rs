use std::net::TcpListener;

use baremesh_model::mesh::Mesh;
use baremesh_model::name::Label;

use super::*;
use crate::originate::Originations;
use crate::snapshot::Host;
use crate::telemetry::metrics::Metrics;

/// Two ends of the line, and the agent's one in the hands of `hear_out`.
fn line() -> (Channel, tokio::net::UnixStream) {
    let (new, old) = UnixStream::pair().expect("a pair");
    old.set_nonblocking(true).expect("a socket");
    (Channel(new), tokio::net::UnixStream::from_std(old).expect("a runtime"))
}

fn publisher() -> Arc<Publisher> {
    let host = Host {
        name: Label::new("h1").expect("a label"),
        addresses: Vec::new(),
        why: "".into(),
        network: None,
    };
    let originations = Arc::new(Originations::new("/nowhere".into()));
    Publisher::new((Mesh::default(), 1), &[], (host, 15008), originations, Metrics::new("mesh"))
        .expect("published")
}

fn in_charge() -> (InCharge, Vec<u16>) {
    let listeners: Vec<_> = (0..3).map(|_| TcpListener::bind("127.0.0.1:0").expect("bound")).collect();
    let mut sockets = Sockets::default();
    for (of, listener) in [Use::Outbound, Use::Hbone, Use::Outbound].into_iter().zip(&listeners) {
        sockets.add(of, listener).expect("a copy");
    }
    let ports = listeners.iter().map(|listener| listener.local_addr().expect("an address").port()).collect();
    let publisher = publisher();
    let heard = Heard::new(Arc::clone(&publisher));
    (
        InCharge {
            sockets,
            steward: None,
            publisher,
            heard,
            watchdog: Some(Duration::from_secs(30)),
            flush: None,
        },
        ports,
    )
}

#[tokio::test]
async fn sockets_are_handed_over_with_what_each_is_for_and_nothing_else_happens_before_its_time() {
    let (channel, stream) = line();
    let (offered, ports) = in_charge();
    let new = async move {
        let (channel, ()) = with(channel, move |channel| {
            channel.say(&Hello { hello: VERSION })?;
            let given: Given = channel.hear(PROMPT)?;
            let taken = descriptors::take(&channel.0, given.sockets.len())?;
            let mut taken = Sockets(given.sockets.into_iter().zip(taken).collect());
            let at = |listener: TcpListener| listener.local_addr().expect("an address").port();
            assert_eq!(
                taken.take(Use::Outbound).into_iter().map(at).collect::<Vec<_>>(),
                [ports[0], ports[2]]
            );
            assert_eq!(taken.take(Use::Hbone).into_iter().map(at).collect::<Vec<_>>(), [ports[1]]);
            Ok(())
        })
        .await
        .expect("taken");
        let mut new = Predecessor { channel: Some(channel) };
        new.let_go_of_rules().await.expect("it lets go");
        new.give_way().await.expect("it gives way");
        new.note_guard().await;
    };
    let old = async {
        let successor = hear_out(stream, &offered).await.expect("one that is ready");
        assert_eq!(successor.process, std::process::id());
        assert!(successor.take().await, "it is guarded");
    };
    tokio::join!(new, old);
}

#[tokio::test]
async fn one_that_leaves_speaks_out_of_turn_or_in_another_version_takes_nothing_over() {
    let hello = |version| Hello { hello: version };
    for (said, expected) in [
        (vec![], "failed to fill whole buffer"),
        (vec![serde_json::to_value(hello(VERSION)).expect("plain")], "failed to fill whole buffer"),
        (vec![serde_json::to_value(hello(99)).expect("plain")], "in version 1, and not 99"),
        (vec![serde_json::json!({ "hello": VERSION }), "ready".into()], "it said Ready and not Rules"),
        (vec![serde_json::json!("anything")], "invalid type"),
    ] {
        let (mut channel, stream) = line();
        let (offered, _) = in_charge();
        for message in &said {
            channel.say(message).expect("said");
        }
        channel.0.shutdown(std::net::Shutdown::Write).expect("an end");
        let error = hear_out(stream, &offered).await.map(|one| one.process).expect_err("nobody takes over");
        assert!(error.to_string().contains(expected), "{said:?}: {error}");
    }
}
