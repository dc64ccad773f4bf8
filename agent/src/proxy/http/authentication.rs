//! Holding a request to the rules for tokens of a service of this host, whichever way it came.

use std::time::SystemTime;

use baremesh_model::http::RequestHead;
use baremesh_model::token::Token;

use super::reply::Reply;
use crate::snapshot::LocalEndpoint;
use crate::telemetry::request_record::RequestRecord;

/// What the request's token says, or the answer to one whose token is not good. Fields and tokens are then as the program is
/// to see them.
pub fn authenticate(
    local: &LocalEndpoint,
    head: &mut RequestHead,
    record: &mut RequestRecord,
) -> Result<Option<Token>, Box<Reply>> {
    let Some(rules) = &local.tokens else { return Ok(None) };
    match rules.enforce(head, SystemTime::now()) {
        Ok(Some(token)) => {
            record.token = Some("verified");
            record.show_without_token(head);
            Ok(Some(token))
        }
        Ok(None) => {
            record.token = Some("none");
            Ok(None)
        }
        Err(refusal) => {
            record.token = Some(refusal.reason());
            rules.take_out(head);
            record.show_without_token(head);
            Err(Box::new(refusal.reply(head)))
        }
    }
}
