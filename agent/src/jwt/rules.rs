//! The rules that a workload's requests are held to. Every token that stands in a request where a rule looks must be one of
//! an issuer that a rule is for, signed by that issuer's key, of this moment, and for this audience. A request without any
//! passes, unless one is asked for: here, or by an AuthorizationPolicy.

use std::sync::Arc;
use std::time::SystemTime;

use baremesh_model::http::RequestHead;
use baremesh_model::http::headers::{Headers, may_be_read_as};
use baremesh_model::mesh::Mesh;
use baremesh_model::name::Label;
use baremesh_model::request_authentication::{
    JwtRule, Missing, Original, RequestAuthentication, SPACE_DELIMITED, TokenPlace, is_preflight,
};
use baremesh_model::token::Token;
use baremesh_model::workload::Labels;

use super::claims;
use super::jws::{Checks, Compact};
use super::key_slot::{KeySlot, TokenKeys};
use super::places::{remove_from, tokens_at};
use super::{MAX_TOKEN, MAX_TOKENS, Refusal};

/// The rules of one workload, compiled.
pub struct TokenRules {
    rules: Vec<Rule>,
    /// Where tokens may stand, each with the rules that look there, in the order of the rules.
    places: Vec<(TokenPlace, Vec<usize>)>,
    /// Fields that are the agent's to write.
    outputs: Vec<Arc<str>>,
    /// Policies of each of which a request must have a token.
    required: Vec<Arc<RequestAuthentication>>,
}

struct Rule {
    policy: Arc<RequestAuthentication>,
    index: usize,
    keys: Arc<KeySlot>,
}

impl Rule {
    fn what(&self) -> &JwtRule {
        &self.policy.rules[self.index]
    }
}

/// A token that was verified.
struct Verified {
    token: Token,
    /// The first rule that takes it.
    rule: usize,
    /// Further ones, looked for where a policy asks for a token of its own.
    others: Vec<usize>,
    payload_part: String,
}

impl TokenRules {
    /// Those for a workload of `namespace` with `labels`; nothing where there are none.
    pub(crate) fn compile(
        mesh: &Mesh,
        (namespace, labels): (&Label, &Labels),
        keys: &mut TokenKeys,
        previous: Option<&TokenKeys>,
    ) -> Option<Arc<Self>> {
        let root = &mesh.config.root_namespace;
        let policies =
            mesh.request_authentications.iter().filter(|policy| policy.is_for(namespace, labels, root));
        let (rules, places, outputs) = (Vec::new(), Vec::new(), Vec::new());
        let mut compiled = Self { rules, places, outputs, required: Vec::new() };
        for policy in policies {
            if policy.missing == Missing::Refused {
                compiled.required.push(Arc::clone(policy));
            }
            for (index, rule) in policy.rules.iter().enumerate() {
                let number = compiled.rules.len();
                let keys = keys.slot(&rule.keys, rule.timeout, previous);
                compiled.rules.push(Rule { policy: Arc::clone(policy), index, keys });
                for place in &rule.places {
                    match compiled.places.iter_mut().find(|(known, _)| known == place) {
                        Some((_, rules)) => rules.push(number),
                        None => compiled.places.push((place.clone(), vec![number])),
                    }
                }
                let of_claims = rule.claim_headers.iter().map(|to| &to.header);
                let outputs = rule.payload_header.iter().chain(of_claims);
                compiled.outputs.extend(outputs.cloned());
            }
        }
        let says_nothing = compiled.rules.is_empty() && compiled.required.is_empty();
        (!says_nothing).then(|| Arc::new(compiled))
    }

    /// Holds a request to the rules. What the agent says of tokens is then in its fields, and what the caller said there is
    /// not; tokens that the program is not to see are taken out.
    pub fn enforce(&self, head: &mut RequestHead, now: SystemTime) -> Result<Option<Token>, Refusal> {
        self.strip(&mut head.headers);
        if is_preflight(head) {
            // Nobody has looked at a token in it.
            self.take_out(head);
            return Ok(None);
        }
        let verified = self.verify_all(head, now)?;
        self.ask_for_required(&verified)?;
        // Where two say something in the same field, the first has the last word, as with policies.
        for one in verified.iter().rev() {
            self.put_out(one, head);
        }
        for (place, rules) in &self.places {
            let is_removed = |one: &Verified| {
                rules.contains(&one.rule) && self.rules[one.rule].what().original == Original::Removed
            };
            if verified.iter().any(is_removed) {
                remove_from(place, head);
            }
        }
        Ok(verified.into_iter().next().map(|one| self.as_policies_see_it(one)))
    }

    /// What `enforce` comes to with a token of which it is taken for granted that whoever it names as its issuer signed it,
    /// and that it stands where these rules look: for who only explains.
    pub fn judge(
        &self,
        head: &RequestHead,
        token: Option<&Token>,
        now: SystemTime,
    ) -> Result<Option<Token>, Refusal> {
        if is_preflight(head) {
            return Ok(None);
        }
        let mut verified = Vec::new();
        if let Some(token) = token {
            let for_us = |rule: &Rule| match rule.is_for_us(token) {
                true => Ok(()),
                false => Err(Refusal::WrongAudience),
            };
            let (rule, others) = self.accept(token, 0..self.rules.len(), now, for_us)?;
            verified.push(Verified { rule, others, payload_part: String::new(), token: token.clone() });
        }
        self.ask_for_required(&verified)?;
        Ok(verified.pop().map(|one| self.as_policies_see_it(one)))
    }

    /// Whether each policy that asks for a token has one.
    fn ask_for_required(&self, verified: &[Verified]) -> Result<(), Refusal> {
        let has_one = |policy| verified.iter().any(|one| self.is_of(one, policy));
        if self.required.iter().all(has_one) { Ok(()) } else { Err(Refusal::Missing) }
    }

    /// Whether a request needs a token.
    pub fn ask_for_one(&self) -> bool {
        !self.required.is_empty()
    }

    /// Why a request that is under way, with the token that was verified when it came, would not be taken by these rules;
    /// none where it would. Its signature is not looked at again.
    pub fn no_longer_taken(&self, head: &RequestHead, token: Option<&Token>) -> Option<&'static str> {
        match token {
            Some(token) => {
                let takes = |rule: &Rule| *rule.what().issuer == token.issuer && rule.is_for_us(token);
                (!self.rules.iter().any(takes)).then_some("no RequestAuthentication takes its token any more")
            }
            None if self.ask_for_one() && !is_preflight(head) => {
                Some("a RequestAuthentication asks for a token now")
            }
            None => None,
        }
    }

    /// Whether a rule of the policy takes the token.
    fn is_of(&self, verified: &Verified, policy: &Arc<RequestAuthentication>) -> bool {
        let mut all = std::iter::once(&verified.rule).chain(&verified.others);
        all.any(|number| Arc::ptr_eq(&self.rules[*number].policy, policy))
    }

    /// Takes out whatever stands where tokens are looked for.
    pub fn take_out(&self, head: &mut RequestHead) {
        self.places.iter().for_each(|(place, _)| remove_from(place, head));
    }

    /// What the first token says, for who only routes by it: nothing is changed, and a token that is not good says nothing.
    pub fn peek(&self, head: &RequestHead, now: SystemTime) -> Option<Token> {
        let verified = self.verify_all(head, now).ok()?;
        verified.into_iter().next().map(|one| self.as_policies_see_it(one))
    }

    /// Takes out what callers write where the agent does, and what some programs read as the same name.
    fn strip(&self, headers: &mut Headers) {
        if self.outputs.is_empty() {
            return;
        }
        let is_ours = |name: &str| self.outputs.iter().any(|own| may_be_read_as(name.as_bytes(), own));
        headers.retain(|name| !is_ours(name));
    }

    /// Takes out of trailers what a program that merges them into the head would take for what the agent says, or for a
    /// token that was looked at.
    pub fn strip_trailers(&self, trailers: &mut Headers) {
        self.strip(trailers);
        let is_looked_at = |name: &str| {
            self.places.iter().any(|(place, _)| match place {
                TokenPlace::Header(looked_at, _) => may_be_read_as(name.as_bytes(), looked_at),
                // `authorization` and `cookie` are no trailers' fields.
                TokenPlace::Bearer | TokenPlace::Param(_) | TokenPlace::Cookie(_) => false,
            })
        };
        trailers.retain(|name| !is_looked_at(name));
    }

    fn verify_all(&self, head: &RequestHead, now: SystemTime) -> Result<Vec<Verified>, Refusal> {
        let mut found: Vec<(String, usize)> = Vec::new();
        let mut refused = None;
        for (index, (place, _)) in self.places.iter().enumerate() {
            tokens_at(place, head, |token| {
                if found.iter().any(|(known, at)| *known == *token && *at == index) {
                    return;
                }
                if token.len() > MAX_TOKEN {
                    refused = refused.or(Some(Refusal::BadFormat));
                } else if found.len() == MAX_TOKENS {
                    refused = refused.or(Some(Refusal::TooMany));
                } else {
                    found.push((token.into_owned(), index));
                }
            });
        }
        match refused {
            Some(refusal) => Err(refusal),
            None => {
                let mut checks = Checks::default();
                let verify =
                    |(token, at): &(String, usize)| self.verify(token, &self.places[*at].1, now, &mut checks);
                found.iter().map(verify).collect()
            }
        }
    }

    /// Verifies one token by the rules that look where it stands.
    fn verify(
        &self,
        text: &str,
        rules: &[usize],
        now: SystemTime,
        checks: &mut Checks,
    ) -> Result<Verified, Refusal> {
        let compact = Compact::parse(text)?;
        let token = claims::token(&compact.payload()?)?;
        let accept = |rule: &Rule| rule.accept(&compact, &token, checks);
        let (rule, others) = self.accept(&token, rules.iter().copied(), now, accept)?;
        let payload_part = compact.payload_part.to_owned();
        Ok(Verified { rule, others, payload_part, token })
    }

    /// The first of some rules that accepts a token, and further ones where they matter.
    fn accept(
        &self,
        token: &Token,
        rules: impl Iterator<Item = usize>,
        now: SystemTime,
        mut accepts: impl FnMut(&Rule) -> Result<(), Refusal>,
    ) -> Result<(usize, Vec<usize>), Refusal> {
        claims::is_of_now(token, now)?;
        let (mut refusal, mut accepted) = (Refusal::UnknownIssuer, Vec::new());
        let of_issuer = |number: &usize| *self.rules[*number].what().issuer == token.issuer;
        for number in rules.filter(of_issuer) {
            match accepts(&self.rules[number]) {
                Ok(()) => accepted.push(number),
                // That the signature was good is what is to be said of it.
                Err(_) if refusal == Refusal::WrongAudience => {}
                Err(other) => refusal = other,
            }
            if !accepted.is_empty() && self.required.is_empty() {
                break;
            }
        }
        let Some((rule, others)) = accepted.split_first() else { return Err(refusal) };
        Ok((*rule, others.to_vec()))
    }

    /// Writes what a rule has a program told of a token.
    fn put_out(&self, verified: &Verified, head: &mut RequestHead) {
        let rule = self.rules[verified.rule].what();
        if let Some(header) = &rule.payload_header {
            // It is base64url.
            let _ = head.headers.set(header, verified.payload_part.as_bytes());
        }
        for to in &rule.claim_headers {
            let claim = to.paths().iter().find_map(|path| verified.token.claim(path.as_ref()));
            if let Some(value) = claim.and_then(claims::field_value) {
                // What may not stand in a field is not written: a claim ends no line.
                let _ = head.headers.set(&to.header, value.as_bytes());
            }
        }
    }

    fn as_policies_see_it(&self, verified: Verified) -> Token {
        let Verified { mut token, rule, .. } = verified;
        let of_rule = self.rules[rule].what().space_delimited.iter().map(|name| &**name);
        claims::split_at_spaces(&mut token, SPACE_DELIMITED.into_iter().chain(of_rule));
        token
    }
}

impl Rule {
    fn accept(&self, compact: &Compact<'_>, token: &Token, checks: &mut Checks) -> Result<(), Refusal> {
        let keys = self.keys.keys().ok_or_else(|| {
            self.keys.ask();
            Refusal::NoKeys
        })?;
        let verified = compact.verify_within(&keys, checks);
        if verified == Err(Refusal::NoSuchKey) {
            self.keys.ask();
        }
        verified?;
        if self.is_for_us(token) { Ok(()) } else { Err(Refusal::WrongAudience) }
    }

    fn is_for_us(&self, token: &Token) -> bool {
        let allowed = &self.what().audiences;
        let is_allowed = |audience: &String| allowed.iter().any(|one| **one == **audience);
        allowed.is_empty() || token.audiences.iter().any(is_allowed)
    }
}

impl std::fmt::Debug for TokenRules {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenRules").field("rules", &self.rules.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
