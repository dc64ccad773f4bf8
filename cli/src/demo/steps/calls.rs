//! Calls by name, and who the called side says has called.

use anyhow::{Context as _, Result, ensure};

use crate::demo::member::{Line, Member};
use crate::demo::stage::{DOMAIN, Stage, identity_of};

/// What the checkout says when orders and catalog have done their part.
const SOLD: &str = "thank you: ordered tea: 350 pence";

/// What stands in a log line for a connection that ended as both ends wished.
const DONE: &str = "-";

/// One purchase is three calls, each by a name that the system's resolver was asked for.
pub(super) fn by_name(stage: &Stage<'_>) -> Result<Vec<String>> {
    let said = stage.client(&stage.web, ("call", "checkout"), &["buy tea"])?;
    let took = said.took.as_millis();
    let answer = said.success("the call to checkout")?;
    ensure!(answer == SOLD, "the checkout answered {answer:?}, and {SOLD:?} was expected");
    let orders = stage.web.service("orders").context("web does not know orders")?;
    ensure!(!orders.addresses.is_empty(), "orders has no virtual address");
    let addresses: Vec<_> = orders.addresses.iter().map(ToString::to_string).collect();
    let endpoints: Vec<_> = orders.endpoints.iter().map(|endpoint| endpoint.address.to_string()).collect();
    Ok(vec![
        format!("on web: call checkout.{DOMAIN}:80 \"buy tea\"  ->  \"{answer}\", {took} ms"),
        format!("checkout asked orders.{DOMAIN}, and that asked catalog.{DOMAIN}"),
        format!(
            "the name orders.{DOMAIN} is {} on web; behind it are {}",
            addresses.join(" and "),
            endpoints.join(" and ")
        ),
    ])
}

/// The identities in the called agents' logs are those of the certificates that the callers' agents hold.
pub(super) fn callers_are_named(stage: &Stage<'_>) -> Result<Vec<String>> {
    let [checkout, orders, catalog] = ["checkout", "orders", "catalog"].map(identity_of);
    stage.order(&stage.web)?.success("the call to orders")?;
    let mut evidence = Vec::new();
    let (host, line) = find(stage, (&checkout, &orders))?;
    evidence.push(in_words(stage, host, &line)?);
    // Orders on `one` reaches the catalog within the host: over the wire it is called from `two`.
    let called_by_orders = || stage.one.log().into_iter().find(|line| is_by_wire(line, (&orders, &catalog)));
    let line = stage.patience.wait_for("orders on two calls the catalog on one", || {
        if called_by_orders().is_none() {
            stage.order(&stage.web).ok()?.status.success().then_some(())?;
        }
        called_by_orders()
    })?;
    evidence.push(in_words(stage, &stage.one, &line)?);
    Ok(evidence)
}

fn is_by_wire(line: &Line, (caller, callee): (&str, &str)) -> bool {
    line.is(caller, callee, DONE) && line.text("connection_security_policy") == "mutual_tls"
}

/// The line of whichever host has served the call.
fn find<'s>(stage: &'s Stage<'_>, parties: (&str, &str)) -> Result<(&'s Member, Line)> {
    let what = format!("a log line about {} and {} over mutual TLS", parties.0, parties.1);
    stage.patience.wait_for(&what, || {
        [&stage.one, &stage.two].into_iter().find_map(|member| {
            member.log().into_iter().find(|line| is_by_wire(line, parties)).map(|line| (member, line))
        })
    })
}

/// What the line says, after the certificate in it has been found on the caller's host.
fn in_words(stage: &Stage<'_>, host: &Member, line: &Line) -> Result<String> {
    let (caller, serial) = (line.text("source_principal"), line.text("peer_certificate_serial"));
    let holder = stage.members().into_iter().find(|member| {
        member.certificates().iter().any(|held| held.identity == caller && held.serial == serial)
    });
    let holder = holder.with_context(|| format!("nobody holds the certificate {serial} of {caller}"))?;
    let last: String = serial.chars().skip(serial.chars().count().saturating_sub(8)).collect();
    Ok(format!(
        "log of {}: {caller} called {}, certificate …{last}, which {} holds",
        host.name(),
        line.text("destination_principal").rsplit('/').next().unwrap_or_default(),
        holder.name()
    ))
}
