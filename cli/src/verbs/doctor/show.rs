//! A diagnosis as people and programs read it.

use std::fmt::Write as _;

use baremesh_agent::doctor::{Check, Severity};
use serde_json::{Value, json};

use super::Diagnosis;
use crate::output::printable;

/// The columns of the first two words of a line.
const STATE: usize = 9;
const NAME: usize = 16;

/// For programs. Fields are only ever added.
pub(super) fn json(diagnosis: &Diagnosis) -> Value {
    let findings = diagnosis.checks.iter().flat_map(|check| {
        check.findings.iter().map(|finding| {
            json!({
                "code": finding.code.as_str(),
                "severity": finding.code.severity(),
                "check": check.name,
                "seen": finding.seen,
                "why": finding.code.why(),
                "do": finding.remedy(),
            })
        })
    });
    let unchecked = diagnosis
        .checks
        .iter()
        .flat_map(|check| check.unchecked.iter().map(|why| json!({ "check": check.name, "why": why })));
    let checks = diagnosis.checks.iter().map(|check| json!({ "check": check.name, "seen": check.seen }));
    json!({
        "agent": diagnosis.agent,
        "errors": diagnosis.count(Severity::Error),
        "warnings": diagnosis.count(Severity::Warning),
        "findings": findings.collect::<Vec<_>>(),
        "checks": checks.collect::<Vec<_>>(),
        "not_checked": unchecked.collect::<Vec<_>>(),
    })
}

/// For people: a line for each check, below it what is wrong and what to do.
pub(super) fn text(diagnosis: &Diagnosis) -> String {
    let mut text = String::new();
    for check in &diagnosis.checks {
        one(check, &mut text);
    }
    let plural = |count: usize, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
    let (errors, warnings) = (diagnosis.count(Severity::Error), diagnosis.count(Severity::Warning));
    let unchecked: usize = diagnosis.checks.iter().map(|check| check.unchecked.len()).sum();
    let mut summary = match (errors, warnings) {
        (0, 0) => "nothing is wrong".to_owned(),
        _ => format!("{}, {}", plural(errors, "error"), plural(warnings, "warning")),
    };
    if unchecked > 0 {
        summary.push_str(&format!("; {} not looked at", plural(unchecked, "thing")));
    }
    // Writing to a text does not fail.
    _ = writeln!(text, "\n{summary}");
    text
}

fn one(check: &Check, text: &mut String) {
    let worst = check.findings.iter().map(|finding| finding.code.severity()).min();
    let state = match (worst, check.seen.is_empty()) {
        (Some(severity), _) => severity.word(),
        (None, true) => "-",
        (None, false) => "ok",
    };
    line(text, &format!("{state:STATE$}{:NAME$}{}", check.name, check.seen));
    let mut detail = |what: &str, said: &str| line(text, &format!("{:STATE$}  {what:<14}{said}", ""));
    for finding in &check.findings {
        detail(finding.code.severity().word(), &format!("{}: {}", finding.code, finding.seen));
        detail("why", finding.code.why());
        detail("do", finding.remedy());
    }
    for why in &check.unchecked {
        detail("not looked at", why);
    }
}

/// What others wrote in it does not steer the terminal.
fn line(text: &mut String, said: &str) {
    _ = writeln!(text, "{}", printable(&said.replace('\n', " ")).trim_end());
}

#[cfg(test)]
mod tests {
    use baremesh_agent::doctor::Finding;
    use baremesh_agent::doctor::code::Code;

    use super::*;

    fn diagnosis() -> Diagnosis {
        let kernel = Check { seen: "Linux 6.1.0, nftables v1.0.6".to_owned(), ..Check::new("kernel") };
        let mut control =
            Check { seen: "10.0.0.9:15012: refused".to_owned(), ..Check::new("control server") };
        control.findings.push(Finding::new(Code::ControlPort, "10.0.0.9:15012: refused"));
        control.unchecked.push("the clocks: it did not say".to_owned());
        let mut rules = Check { seen: "in-place (trial)".to_owned(), ..Check::new("rules") };
        rules.findings.push(Finding::new(Code::RulesOff, "on trial\u{1b}[2J").with_remedy("confirm"));
        let firewall = Check::unchecked("firewall", "only root is shown rules of others");
        Diagnosis { agent: "running", checks: vec![kernel, control, rules, firewall] }
    }

    #[test]
    fn people_read_what_is_wrong_and_what_to_do() {
        let expected = "\
ok       kernel          Linux 6.1.0, nftables v1.0.6
error    control server  10.0.0.9:15012: refused
           error         control_port: 10.0.0.9:15012: refused
           why           no new state and no new certificate; what is in force stays
           do            `systemctl start baremesh-control` on the control host
           not looked at the clocks: it did not say
warning  rules           in-place (trial)
           warning       rules_off: on trial\u{fffd}[2J
           why           what is not captured goes past the agent
           do            confirm
-        firewall
           not looked at only root is shown rules of others

1 error, 1 warning; 2 things not looked at
";
        assert_eq!(text(&diagnosis()), expected);
        let well = Diagnosis { agent: "running", checks: vec![diagnosis().checks.remove(0)] };
        assert!(text(&well).ends_with("\n\nnothing is wrong\n"));
    }

    #[test]
    fn programs_read_stable_codes() {
        let said = json(&diagnosis());
        assert_eq!((said["errors"].as_u64(), said["warnings"].as_u64()), (Some(1), Some(1)));
        assert_eq!(said["findings"][0]["code"], "control_port");
        assert_eq!(said["findings"][1]["severity"], "warning");
        assert_eq!(said["not_checked"][1]["check"], "firewall");
    }
}
