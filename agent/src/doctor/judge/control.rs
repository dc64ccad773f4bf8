//! The control server: whether it is in reach, what its clock says, and whether what it says is in force here.

use std::time::Duration;

use crate::admin::report::SourceReport;
use crate::admin::report::doctor::{ReachReport, Step};
use crate::doctor::code::Code;
use crate::doctor::{Check, Finding};

/// How far apart two clocks may be, in milliseconds: certificates become valid two minutes before they are made, and tokens
/// of others are given a minute.
pub const SKEW_BOUND: u64 = 60_000;
/// A state older than the newest by less than this may be on its way, in seconds.
const ON_ITS_WAY: u64 = 10;

/// Whether it is in reach, and its clock.
pub fn reach(report: &ReachReport) -> Check {
    let mut check = Check::new("control server");
    let at = report.address.map_or_else(|| report.control.clone(), |address| address.to_string());
    let said = match &report.detail {
        Some(detail) => format!("{at}: {detail}"),
        None => at.clone(),
    };
    check.seen = match report.step {
        Step::Done => format!("{at} answers"),
        _ => said.clone(),
    };
    let code = match report.step {
        Step::Name => Some(Code::ControlName),
        Step::Route => Some(Code::ControlRoute),
        Step::Port => Some(Code::ControlPort),
        Step::Silence => Some(Code::ControlSilent),
        Step::Handshake => Some(Code::ControlHandshake),
        Step::Clocks => Some(Code::ClockSkew),
        Step::Identity => Some(Code::ControlIdentity),
        Step::Answer => Some(Code::ControlAnswer),
        Step::Refused => Some(Code::ControlRefuses),
        Step::LargePackets => Some(Code::LargePacketsLost),
        Step::Done => None,
    };
    check.findings.extend(code.map(|code| Finding::new(code, said)));
    match report.skew_milliseconds {
        Some(skew) => {
            check.seen.push_str(&format!(", clocks {} apart", apart(skew)));
            if skew.unsigned_abs() > SKEW_BOUND {
                let how = if skew > 0 { "behind" } else { "ahead of" };
                let said = format!("this host's clock is {} {how} the control server's", apart(skew));
                check.found(Code::ClockSkew, said);
            }
        }
        None if report.step != Step::Clocks => {
            check.unchecked.push("the clocks: the control server did not say what its own shows".to_owned());
        }
        None => {}
    }
    check
}

/// Seconds, and tenths below ten.
fn apart(milliseconds: i64) -> String {
    let distance = Duration::from_millis(milliseconds.unsigned_abs());
    match distance.as_secs() {
        0..10 => format!("{:.1} s", distance.as_secs_f64()),
        seconds => format!("{seconds} s"),
    }
}

/// Whether the newest state is in force. `newest` is the version that the control server says; `kept` the age in seconds of
/// the last good state on the disk, where it can be seen and is expected.
pub fn registry(source: &SourceReport, newest: Option<u64>, kept: Option<Option<u64>>, now: u64) -> Check {
    let mut check = Check::new("registry");
    let age = now.saturating_sub(source.taken);
    check.seen = format!("{}, version {} in force, taken {age} s ago", source.name, source.version);
    if !source.connected {
        let said = format!("version {} is in force since {age} s, and no newer one can come", source.version);
        check.found(Code::RegistryAway, said);
    }
    if let Some(newest) =
        newest.filter(|newest| *newest > source.version && source.connected && age > ON_ITS_WAY)
    {
        let said = format!("version {} is in force since {age} s, the newest is {newest}", source.version);
        check.found(Code::RegistryBehind, said);
    }
    if let Some(error) = &source.last_error {
        check.found(Code::StateRefused, error.clone());
    }
    if kept == Some(None) && source.version > 0 {
        check
            .found(Code::StateNotKept, format!("version {} is in force, and no file has it", source.version));
    }
    check
}

#[cfg(test)]
mod tests {
    use super::*;

    fn codes(check: &Check) -> Vec<Code> {
        check.findings.iter().map(|finding| finding.code).collect()
    }

    #[test]
    fn each_step_has_a_name_of_its_own() {
        let check = |step: Step, skew: Option<i64>, expected: &[Code]| {
            let detail = (step != Step::Done).then(|| "so".to_owned());
            let report = ReachReport { step, detail, skew_milliseconds: skew, ..ReachReport::default() };
            assert_eq!(codes(&reach(&report)), expected, "{step:?} {skew:?}");
        };
        check(Step::Done, Some(0), &[]);
        check(Step::Done, Some(59_999), &[]);
        check(Step::Done, Some(-60_000), &[]);
        check(Step::Done, Some(60_001), &[Code::ClockSkew]);
        check(Step::Done, Some(-300_000), &[Code::ClockSkew]);
        check(Step::Done, None, &[]);
        check(Step::LargePackets, Some(10), &[Code::LargePacketsLost]);
        for (step, code) in [
            (Step::Name, Code::ControlName),
            (Step::Route, Code::ControlRoute),
            (Step::Port, Code::ControlPort),
            (Step::Silence, Code::ControlSilent),
            (Step::Handshake, Code::ControlHandshake),
            (Step::Clocks, Code::ClockSkew),
            (Step::Identity, Code::ControlIdentity),
            (Step::Answer, Code::ControlAnswer),
            (Step::Refused, Code::ControlRefuses),
        ] {
            check(step, None, &[code]);
        }
    }

    #[test]
    fn says_which_clock_is_ahead() {
        let said = |skew| {
            let report =
                ReachReport { step: Step::Done, skew_milliseconds: Some(skew), ..ReachReport::default() };
            reach(&report).findings[0].seen.clone()
        };
        assert_eq!(said(300_400), "this host's clock is 300 s behind the control server's");
        assert_eq!(said(-90_000), "this host's clock is 90 s ahead of the control server's");
    }

    #[test]
    fn tells_an_old_state_from_one_on_its_way() {
        let source = |connected, version, taken| SourceReport {
            name: "control".to_owned(),
            connected,
            version,
            taken,
            last_error: None,
            consul: None,
        };
        let check = |source: SourceReport, newest, kept, expected: &[Code]| {
            assert_eq!(codes(&registry(&source, newest, kept, 1_000)), expected, "{source:?}");
        };
        check(source(true, 7, 900), Some(7), Some(Some(100)), &[]);
        check(source(true, 7, 900), None, None, &[]);
        check(source(true, 7, 900), Some(8), None, &[Code::RegistryBehind]);
        check(source(true, 7, 995), Some(8), None, &[]);
        check(source(false, 7, 900), None, None, &[Code::RegistryAway]);
        check(source(true, 7, 900), Some(7), Some(None), &[Code::StateNotKept]);
        check(source(true, 0, 900), None, Some(None), &[]);
        let refused = SourceReport { last_error: Some("no".to_owned()), ..source(true, 7, 900) };
        check(refused, Some(7), None, &[Code::StateRefused]);
    }
}
