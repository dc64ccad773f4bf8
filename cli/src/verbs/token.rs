//! `baremesh token`.

use std::time::{Duration, SystemTime};

use baremesh_model::grant::{AddressGrant, Grant};
use baremesh_model::name::Label;
use clap::{Args, Subcommand};
use http::Method;
use serde_json::{Value, json};

use super::server::{ControlServer, Remote};
use super::{Global, block_on, values};
use crate::control::report::{TokenAnswer, TokenOrder, TokenReport};
use crate::output::{Output, in_words, relative, remark, say, say_json, table};

/// Make, list and withdraw join tokens, on the control host
#[derive(Debug, Args)]
pub struct Token {
    #[command(flatten)]
    remote: Remote,
    #[command(subcommand)]
    verb: TokenVerb,
}

#[derive(Debug, Subcommand)]
enum TokenVerb {
    Create(Create),
    /// List the tokens, used ones too
    List,
    /// Withdraw a token that nobody has used yet
    Delete {
        /// Its id, as `token list` shows it
        id: String,
    },
}

const EXAMPLES: &str = "\
Examples:
  baremesh token create                                 a host without services of its own: it may call
  baremesh token create --service orders.shop           a host that runs `orders` of the namespace `shop`
  baremesh token create --service 'web-*' --host web1   for the host web1 alone
  baremesh token create --rejoin web1                   for web1 set up anew, or shut out before
  baremesh token create --service db --address 203.0.113.7    for a host behind NAT, which others reach there

The token is shown once. It works for one host, once, within its time.";

/// Make a token with which one host can join
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
struct Create {
    /// A service that the host may run, `*` for any run of characters; can be given several times [without a
    /// namespace: default]
    #[arg(long = "service", value_name = "NAME[.NAMESPACE]", value_parser = Grant::parse)]
    services: Vec<Grant>,
    /// An address or CIDR block at which the host may say that it is, although it does not speak to the control server
    /// from there (NAT, a container); can be given several times
    #[arg(long = "address", value_name = "ADDRESS|CIDR", value_parser = AddressGrant::parse)]
    addresses: Vec<AddressGrant>,
    /// The host that may use it, by the name under which it joins [default: any]
    #[arg(long, value_parser = Label::new, conflicts_with = "rejoin")]
    host: Option<Label>,
    /// For a host set up anew, or shut out before: it takes the place of the one that joined under this name
    #[arg(long, value_name = "HOST", value_parser = Label::new)]
    rejoin: Option<Label>,
    /// How long it can be used: 90s, 15m, 12h, 7d; 30 days at most
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = values::duration)]
    expires: Duration,
}

impl Token {
    pub(super) fn run(self, global: &Global) -> anyhow::Result<()> {
        let server = self.remote.server(&global.directories())?;
        match self.verb {
            TokenVerb::Create(create) => create.run(&server, global.output),
            TokenVerb::List => list(&server, global.output),
            TokenVerb::Delete { id } => {
                let _: Value = block_on(server.ask(Method::DELETE, &format!("/tokens/{}", path_part(&id)?)))?;
                match global.output {
                    Output::Json => say_json(&json!({ "deleted": id })),
                    _ => say(format_args!("token {id} is withdrawn")),
                }
            }
        }
    }
}

/// A part of a request's path: ids and names need no escaping, anything else is none.
pub(super) fn path_part(text: &str) -> anyhow::Result<&str> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    match !text.is_empty() && text.len() <= 64 && text.bytes().all(plain) {
        true => Ok(text),
        false => Err(crate::output::usage(format!("`{text}` is no id: `baremesh token list` shows them"))),
    }
}

impl Create {
    fn run(self, server: &ControlServer, output: Output) -> anyhow::Result<()> {
        let rejoin = self.rejoin.is_some();
        let order = TokenOrder {
            services: self.services.iter().map(ToString::to_string).collect(),
            addresses: self.addresses.iter().map(ToString::to_string).collect(),
            host: self.host.or(self.rejoin).map(|host| host.to_string()),
            rejoin,
            expires_seconds: Some(self.expires.as_secs()),
        };
        let answer: TokenAnswer = block_on(server.post("/token", &order))?;
        if output == Output::Json {
            return say_json(&answer);
        }
        // Alone on the standard output, so that `TOKEN=$(baremesh token create)` works.
        say(&answer.token)?;
        let within = in_words(self.expires);
        remark(format_args!("\n{}\nOn the new host, once, within {within}:", about(&order)));
        let name = order.host.map(|host| format!(" --host {host}")).unwrap_or_default();
        remark(format_args!("  baremesh join {} --token TOKEN{name}", server.reached_at(answer.port)));
        Ok(())
    }
}

fn about(order: &TokenOrder) -> String {
    let services = match order.services.is_empty() {
        true => "It grants no services: the host may call others, and a HostGrant can add some.".to_owned(),
        false => format!("It grants the services {}.", order.services.join(", ")),
    };
    match order.addresses.is_empty() {
        true => services,
        false => format!("{services}\nIt grants the addresses {}.", order.addresses.join(", ")),
    }
}

/// What a token or a host was granted, for a table.
pub(super) fn granted(services: &[String], addresses: &[String]) -> String {
    let granted = [services, addresses].concat();
    if granted.is_empty() { "-".to_owned() } else { granted.join(" ") }
}

fn list(server: &ControlServer, output: Output) -> anyhow::Result<()> {
    let tokens: Vec<TokenReport> = block_on(server.ask(Method::GET, "/tokens"))?;
    if output == Output::Json {
        return say_json(&tokens);
    }
    let now = SystemTime::now();
    let row = |token: &TokenReport| {
        let host = token.host.clone().unwrap_or_else(|| "any".to_owned());
        let host = if token.rejoin { format!("{host} (rejoin)") } else { host };
        let services = granted(&token.services, &token.addresses);
        let used = token.redeemed_by.clone().map_or_else(|| "-".to_owned(), |host| format!("by {host}"));
        vec![token.id.clone(), host, services, relative(token.expires_at, now), used]
    };
    let rows = tokens.iter().map(row).collect();
    say(table(
        &["ID", "FOR HOST", "GRANTS", "EXPIRES", "USED"],
        rows,
        "no tokens: `baremesh token create` makes one",
    ))
}

#[cfg(test)]
mod tests {
    use baremesh_ca::service::TOKEN_LIFETIME;

    use super::*;

    #[test]
    fn default_is_the_authority_s() {
        assert_eq!(values::duration("1h"), Ok(TOKEN_LIFETIME));
    }

    #[test]
    fn only_plain_text_becomes_a_path() {
        assert!(path_part("aB-_9").is_ok());
        for bad in ["", "a/b", "../x", "a b", "a?b", "ä"] {
            assert!(path_part(bad).is_err(), "{bad}");
        }
    }
}
