//! `service-splitter`: shares of a service's requests.

use baremesh_model::name::Label;
use serde_json::Value as Json;

use super::entries::name;
use super::fields::Fields;
use super::{Findings, headers};

/// One share.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Split {
    /// Hundredths of a percent.
    pub(super) weight: u64,
    /// Where it goes.
    pub(super) service: Label,
    /// To which of its subsets.
    pub(super) subset: Option<String>,
    /// What changes on the way.
    pub(super) headers: Option<Json>,
}

/// All shares together, in hundredths of a percent.
pub(super) const WHOLE: u64 = 10_000;

pub(super) fn read(fields: Fields<'_>, own: &Label, f: &mut Findings) -> Vec<Split> {
    let all = fields.objects(f, "Splits");
    let splits: Vec<Split> = all.into_iter().filter_map(|fields| split(fields, own, f)).collect();
    if splits.iter().map(|split| split.weight).sum::<u64>() != WHOLE {
        fields.refuse(f, "Splits", "have weights that do not make up 100", "Consul takes no such entry");
    }
    fields.finish(f);
    splits
}

fn split(fields: Fields<'_>, own: &Label, f: &mut Findings) -> Option<Split> {
    fields.at_home(f);
    let weight = match fields.value("Weight").map(|weight| (weight.as_f64(), weight)) {
        None => 0,
        // Two decimals are all that Consul takes; a float of them is a whole number of hundredths but for its last bits.
        Some((Some(weight), _)) if (0.0..=100.0).contains(&weight) => (weight * 100.0).round() as u64,
        Some(_) => {
            fields.refuse(f, "Weight", "is not a number of 0 to 100", "");
            0
        }
    };
    let service = match fields.text(f, "Service") {
        Some(text) => name(f, &fields.entry, Some(&fields.place("Service")), text)?,
        None => own.clone(),
    };
    let subset = fields.text(f, "ServiceSubset").map(str::to_owned);
    let headers = headers::read(&fields, f);
    fields.finish(f);
    Some(Split { weight, service, subset, headers })
}
