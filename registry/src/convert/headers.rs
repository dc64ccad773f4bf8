//! Fields of requests and answers that routes change.

use serde_json::{Map, Value as Json, json};

use super::Findings;
use super::fields::Fields;

/// `RequestHeaders` and `ResponseHeaders` as `headers` of a route or destination; none where nothing is changed.
pub(super) fn read(fields: &Fields<'_>, f: &mut Findings) -> Option<Json> {
    let mut both = Map::new();
    for (key, side) in [("RequestHeaders", "request"), ("ResponseHeaders", "response")] {
        let Some(inner) = fields.object(f, key) else { continue };
        let mut changes = Map::new();
        for (key, change) in [("Add", "add"), ("Set", "set")] {
            let values = inner.pairs(f, key);
            if values.iter().any(|(_, value)| value.replace("%%", "").contains('%')) {
                inner.refuse(f, key, "variables of Envoy's are not known here", "write the value itself");
            }
            if !values.is_empty() {
                let values: Map<String, Json> =
                    values.into_iter().map(|(name, value)| (name.to_owned(), value.into())).collect();
                changes.insert(change.into(), values.into());
            }
        }
        let removed = inner.texts(f, "Remove");
        if !removed.is_empty() {
            changes.insert("remove".into(), json!(removed));
        }
        inner.finish(f);
        if !changes.is_empty() {
            both.insert(side.into(), changes.into());
        }
    }
    (!both.is_empty()).then(|| both.into())
}
