//! What is made of the request's token: by the rules of a workload, as its own agent compiles them.

use std::sync::Arc;
use std::time::SystemTime;

use baremesh_model::http::RequestHead;
use baremesh_model::name::Label;
use baremesh_model::token::Token;
use baremesh_model::workload::Labels;

use super::Case;
use crate::jwt::{Refusal, TokenKeys, TokenRules};

/// The rules of a workload.
pub(super) fn rules(case: &Case<'_>, workload: (&Label, &Labels)) -> Option<Arc<TokenRules>> {
    // Keys are not looked at: that the token is signed is taken for granted.
    TokenRules::compile(&case.snapshot.mesh, workload, &mut TokenKeys::new(None), None)
}

/// What policies see of the token where these rules hold, or why the request is refused.
pub(super) fn judge(
    case: &Case<'_>,
    rules: Option<&TokenRules>,
    head: &RequestHead,
) -> Result<Option<Token>, Refusal> {
    let Some(rules) = rules else { return Ok(None) };
    rules.judge(head, case.asked.token.as_ref(), SystemTime::now())
}

/// What routes see of it, by the rules of the workload that calls. One that is not good says nothing.
pub(super) fn for_routes(case: &Case<'_>) -> Option<Token> {
    if !case.snapshot.routes_ask_for_claims {
        return None;
    }
    let identity = &case.caller.identity;
    let labels = case.snapshot.labels_of(case.caller.index);
    let rules = rules(case, (identity.namespace(), labels));
    judge(case, rules.as_deref(), &case.asked.head).ok().flatten()
}

/// What becomes of it, in words; nothing where nobody looks.
pub(super) fn in_words(
    rules: Option<&TokenRules>,
    judged: &Result<Option<Token>, Refusal>,
) -> Option<String> {
    rules?;
    Some(match judged {
        Ok(Some(token)) => format!("taken, of {}", token.principal()),
        Ok(None) => "none, and none is asked for".to_owned(),
        Err(refusal) => format!("refused: {}", refusal.text()),
    })
}
