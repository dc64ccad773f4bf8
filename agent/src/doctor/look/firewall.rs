//! Rules of others, as `nft -j list ruleset` shows them: base chains and the rules that redirect, accept or drop. Only root is
//! shown them. Sets are left out, so that a rule which names one may match anything.

use serde_json::Value;

use crate::capture::nft_ruleset;

/// A chain of somebody else's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Chain {
    /// `family table chain`, as `nft list chain` takes it.
    pub name: String,
    /// The family and the table.
    pub table: String,
    /// What it hooks into; none where others jump to it.
    pub hook: Option<Hook>,
    /// Its rules, of which there may be some of no interest.
    pub rules: Vec<Rule>,
}

/// Where a base chain is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hook {
    /// `nat`, `filter`, `route`.
    pub kind: String,
    /// `input`, `output`, `prerouting`, …
    pub at: String,
    /// The lower, the earlier.
    pub priority: i64,
    /// Whether what no rule decides is dropped.
    pub drops: bool,
}

/// What is known of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// What it does.
    pub action: Action,
    /// The ports that it asks for; none where it asks for none, or for a set.
    pub ports: Option<Vec<(u16, u16)>>,
    /// Whether it is about answers, or about the loopback device alone.
    pub is_narrow: bool,
}

/// What a rule does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Redirects, translates the destination, or hands to another socket.
    Redirect,
    /// Lets pass.
    Accept,
    /// Drops or rejects.
    Drop,
    /// Goes on elsewhere.
    Jump,
    /// None of these.
    Other,
}

impl Rule {
    /// Whether it may be about a port.
    pub fn may_match(&self, port: u16) -> bool {
        self.ports.as_ref().is_none_or(|ports| ports.iter().any(|(from, to)| (*from..=*to).contains(&port)))
    }

    /// Whether it names a port.
    pub fn names(&self, port: u16) -> bool {
        self.ports.is_some() && self.may_match(port)
    }
}

/// The chains of other tables than ours.
pub fn chains() -> Result<Vec<Chain>, String> {
    parse(&nft_ruleset().map_err(|error| error.to_string())?)
}

fn parse(text: &str) -> Result<Vec<Chain>, String> {
    let whole: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let objects = whole["nftables"].as_array().ok_or("there is no `nftables`")?;
    let mut chains: Vec<Chain> = Vec::new();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    for object in objects {
        if let Some(chain) = object.get("chain") {
            let (family, table, name) = (text(&chain["family"]), text(&chain["table"]), text(&chain["name"]));
            if family == "inet" && table.starts_with("baremesh") {
                continue;
            }
            let hook = chain.get("hook").map(|hook| Hook {
                kind: text(&chain["type"]),
                at: text(hook),
                priority: chain["prio"].as_i64().unwrap_or_default(),
                drops: chain["policy"] == "drop",
            });
            let table = format!("{family} {table}");
            chains.push(Chain { name: format!("{table} {name}"), table, hook, rules: Vec::new() });
        }
        if let Some(rule) = object.get("rule") {
            let name = [&rule["family"], &rule["table"], &rule["chain"]].map(text).join(" ");
            if let Some(chain) = chains.iter_mut().find(|chain| chain.name == name) {
                chain.rules.push(read_rule(&rule["expr"]));
            }
        }
    }
    Ok(chains)
}

fn read_rule(expressions: &Value) -> Rule {
    let mut rule = Rule { action: Action::Other, ports: None, is_narrow: false };
    for expression in expressions.as_array().into_iter().flatten() {
        let Some((kind, body)) = expression.as_object().and_then(|one| one.iter().next()) else { continue };
        match kind.as_str() {
            "match" => read_match(body, &mut rule),
            "redirect" | "dnat" | "tproxy" => rule.action = Action::Redirect,
            "accept" => rule.action = Action::Accept,
            "drop" | "reject" => rule.action = Action::Drop,
            "jump" | "goto" | "vmap" | "xt" => rule.action = Action::Jump,
            _ => {}
        }
    }
    rule
}

fn read_match(body: &Value, rule: &mut Rule) {
    let left = &body["left"];
    if left["payload"]["field"] == "dport" {
        // `!=` and sets of elements that are not shown may be about anything.
        rule.ports = if body["op"] == "==" || body["op"] == "in" { ports(&body["right"]) } else { None };
    }
    let right = body["right"].to_string();
    let of_answers = left["ct"]["key"] == "state" && !right.contains("new");
    let of_loopback = ["iifname", "iif", "oifname", "oif"].iter().any(|key| left["meta"]["key"] == *key)
        && right == "\"lo\"";
    rule.is_narrow |= of_answers || of_loopback;
}

fn ports(right: &Value) -> Option<Vec<(u16, u16)>> {
    let one = |value: &Value| value.as_u64().and_then(|port| u16::try_from(port).ok());
    if let Some(port) = one(right) {
        return Some(vec![(port, port)]);
    }
    if let Some([from, to]) = right["range"].as_array().map(Vec::as_slice) {
        return Some(vec![(one(from)?, one(to)?)]);
    }
    let elements = right["set"].as_array()?;
    elements.iter().map(ports).collect::<Option<Vec<_>>>().map(|all| all.concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULESET: &str = r#"{"nftables": [{"metainfo": {"version": "1.0.6"}},
        {"table": {"family": "inet", "name": "baremesh"}},
        {"chain": {"family": "inet", "table": "baremesh", "name": "outbound", "type": "nat", "hook": "output", "prio": -105, "policy": "accept"}},
        {"rule": {"family": "inet", "table": "baremesh", "chain": "outbound", "expr": [{"redirect": {"port": 15001}}]}},
        {"chain": {"family": "ip", "table": "fw", "name": "in", "type": "filter", "hook": "input", "prio": 0, "policy": "drop"}},
        {"chain": {"family": "ip", "table": "fw", "name": "more"}},
        {"rule": {"family": "ip", "table": "fw", "chain": "in", "expr": [
            {"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": ["established", "related"]}}, {"accept": null}]}},
        {"rule": {"family": "ip", "table": "fw", "chain": "in", "expr": [
            {"match": {"op": "==", "left": {"meta": {"key": "iifname"}}, "right": "lo"}}, {"accept": null}]}},
        {"rule": {"family": "ip", "table": "fw", "chain": "in", "expr": [
            {"match": {"op": "==", "left": {"payload": {"protocol": "tcp", "field": "dport"}}, "right": {"set": [22, {"range": [15000, 15010]}]}}},
            {"counter": {"packets": 1, "bytes": 2}}, {"accept": null}]}},
        {"rule": {"family": "ip", "table": "fw", "chain": "more", "expr": [
            {"match": {"op": "==", "left": {"payload": {"protocol": "tcp", "field": "dport"}}, "right": "@ports"}}, {"drop": null}]}}]}"#;

    #[test]
    fn reads_what_nft_writes() {
        let chains = parse(RULESET).expect("a ruleset");
        let names: Vec<_> = chains.iter().map(|chain| chain.name.as_str()).collect();
        assert_eq!(names, ["ip fw in", "ip fw more"], "ours is not among them");
        let hook = chains[0].hook.as_ref().expect("a base chain");
        assert_eq!(
            (hook.kind.as_str(), hook.at.as_str(), hook.priority, hook.drops),
            ("filter", "input", 0, true)
        );
        let rules = &chains[0].rules;
        assert!(rules[0].is_narrow && rules[1].is_narrow && !rules[2].is_narrow, "{rules:?}");
        assert!(rules.iter().all(|rule| rule.action == Action::Accept), "{rules:?}");
        assert!(rules[2].names(22) && rules[2].names(15008) && !rules[2].may_match(15011), "{rules:?}");
        let unknown = &chains[1].rules[0];
        assert!(unknown.action == Action::Drop && unknown.may_match(15008) && !unknown.names(15008));
    }

    #[test]
    fn other_output_is_refused() {
        for text in ["", "{}", "[]"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
