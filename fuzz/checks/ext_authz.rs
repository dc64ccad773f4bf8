//! Answers of a provider over gRPC: whatever bytes they are, what frames a request or vouches for its caller stays as it was.

use baremesh_agent::external_authorization::grpc;
use baremesh_model::external_authorization::{CheckAnswer, may_be_set};
use baremesh_model::http::syntax::check_target;
use baremesh_model::http::{Headers, RequestHead};

/// Checks one message, without its prefix.
pub fn check(data: &[u8]) {
    let framed = [&[0][..], &u32::try_from(data.len()).unwrap_or(0).to_be_bytes(), data].concat();
    match grpc::read(Some(0), framed.into()) {
        CheckAnswer::Failed(_) => {}
        CheckAnswer::Denied(denial) => {
            assert!((200..=599).contains(&denial.status));
            assert!(denial.headers.iter().all(|(name, _)| may_be_set(name)));
        }
        CheckAnswer::Allowed(changes) => {
            let own = [("x-forwarded-client-cert", "By=a;URI=b"), ("content-length", "3")];
            let mut head =
                RequestHead { authority: "a".into(), target: "/a?b=c".into(), ..RequestHead::default() };
            for (name, value) in own {
                head.headers.append(name, value.as_bytes()).expect("a field");
            }
            changes.apply(&mut head);
            assert_eq!((&*head.authority, head.path()), ("a", "/a"));
            assert_eq!(check_target(head.target.as_bytes()), Ok(()));
            for (name, value) in own {
                let all: Vec<_> = head.headers.get_all(name).collect();
                assert_eq!(all, [value.as_bytes()]);
            }
            assert!(
                head.headers
                    .iter()
                    .all(|(name, _)| own.iter().any(|(own, _)| *own == name) || may_be_set(name))
            );
            let mut answer = Headers::default();
            changes.mark_answer(&mut answer);
            assert!(answer.iter().all(|(name, _)| may_be_set(name)));
        }
    }
}
