//! Tokens and their redemption. A redemption is decided by a pure function on what the ledger knows, and written
//! in the same transaction, before anything is signed for it.

use std::time::{Duration, SystemTime};

use aws_lc_rs::constant_time::verify_slices_are_equal;
use baremesh_model::grant::{AddressGrant, Grant};
use baremesh_model::name::Label;
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::hosts::{HostRecord, find, from_lines, to_lines};
use super::records::{AuditRecord, Outcome, append};
use super::{Ledger, LedgerError};
use crate::clock::{from_unix, in_words, to_unix};

/// How long after its redemption a token answers the same key again: for a host whose answer was lost.
pub const REDEEM_AGAIN: Duration = Duration::from_secs(600);
/// How long a token is kept after it expired, so that its late use can be told from a guess.
pub const TOKENS_KEPT: Duration = Duration::from_secs(30 * 86_400);

/// Which host may redeem a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenHost {
    /// Any host whose name is not taken.
    Any,
    /// This host, if its name is not taken.
    Only(Label),
    /// This host, taking the place of one that joined under the name before.
    Rejoin(Label),
}

impl TokenHost {
    fn name(&self) -> Option<&Label> {
        match self {
            Self::Any => None,
            Self::Only(name) | Self::Rejoin(name) => Some(name),
        }
    }

    fn is_rejoin(&self) -> bool {
        matches!(self, Self::Rejoin(_))
    }
}

/// What a token invites to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invitation {
    /// Who may redeem it.
    pub host: TokenHost,
    /// Which services that host may have.
    pub grants: Vec<Grant>,
    /// Which addresses it may announce besides those that it speaks from.
    pub addresses: Vec<AddressGrant>,
    /// Until when.
    pub expires_at: SystemTime,
}

/// A token as lists show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRecord {
    /// Its id.
    pub id: String,
    /// What it invites to.
    pub invitation: Invitation,
    /// By which host it was redeemed, if it was.
    pub redeemed_by: Option<Label>,
}

/// An attempt to redeem a token.
#[derive(Debug, Clone)]
pub struct Redemption {
    /// The token's id.
    pub token: String,
    /// The hash of its secret.
    pub secret_hash: [u8; 32],
    /// The host's name.
    pub host: Label,
    /// The fingerprint of the host's public key.
    pub key: [u8; 32],
}

/// Why a token was not redeemed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenRefusal {
    /// No such token, or another secret. Which of the two is nobody's business.
    #[error("the token is not known here: make a new one with `baremesh token create` on the control host")]
    Unknown,
    /// Too late.
    #[error("the token expired {ago} ago: make a new one with `baremesh token create` on the control host")]
    Expired {
        /// How long ago, in words.
        ago: String,
    },
    /// Redeemed by another key, or too long ago.
    #[error(
        "the token was used already: each one works once; make a new one with `baremesh token create` on the control host"
    )]
    Used,
    /// Made for another host.
    #[error("the token was made for host {expected}, not for {found}")]
    OtherHost {
        /// Whose token it is.
        expected: Label,
        /// Who came with it.
        found: Label,
    },
    /// The name is another host's.
    #[error(
        "a host named {0} has joined already with another key: join under another name (`--host`), or, if that host is gone or was \
         set up anew, use a token from `baremesh token create --rejoin {0}`"
    )]
    HostTaken(Label),
    /// The host was shut out.
    #[error(
        "host {0} was revoked: to let it in again, use a token from `baremesh token create --rejoin {0}`"
    )]
    HostRevoked(Label),
}

/// How a redemption failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RedeemError {
    #[error(transparent)]
    Refused(#[from] TokenRefusal),
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

impl From<rusqlite::Error> for RedeemError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Ledger(error.into())
    }
}

/// What a redemption came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Redeemed {
    /// The certificate is still to be issued, to a host of this generation: for the first time, or because a crash
    /// came between.
    ToIssue(u32),
    /// The answer that was given before.
    Answered(Vec<u8>),
}

struct TokenRow {
    secret_hash: [u8; 32],
    invitation: Invitation,
    redeemed: Option<PastRedemption>,
}

struct PastRedemption {
    at: SystemTime,
    host: String,
    key: [u8; 32],
    answer: Option<Vec<u8>>,
}

enum Step {
    Redeem,
    Repeat(Vec<u8>),
    /// Redeemed already, and never signed for.
    Resume(u32),
}

/// Whether `attempt` may redeem `token`, given who holds the host's name.
fn decide(
    token: Option<TokenRow>,
    holder: Option<&HostRecord>,
    attempt: &Redemption,
    now: SystemTime,
) -> Result<Step, TokenRefusal> {
    let token = token.ok_or(TokenRefusal::Unknown)?;
    verify_slices_are_equal(&token.secret_hash, &attempt.secret_hash).map_err(|_| TokenRefusal::Unknown)?;
    let invited = &token.invitation;
    if let Some(expected) = invited.host.name().filter(|expected| **expected != attempt.host) {
        return Err(TokenRefusal::OtherHost { expected: expected.clone(), found: attempt.host.clone() });
    }
    if let Some(past) = token.redeemed {
        let same = past.host == attempt.host.as_str() && past.key == attempt.key;
        let recent = now.duration_since(past.at).unwrap_or_default() <= REDEEM_AGAIN;
        return match holder {
            Some(holder) if holder.revoked => Err(TokenRefusal::HostRevoked(holder.name.clone())),
            Some(holder) if same && recent => match past.answer {
                Some(answer) => Ok(Step::Repeat(answer)),
                // Who took the name over since is another.
                None if holder.key == attempt.key => Ok(Step::Resume(holder.generation)),
                None => Err(TokenRefusal::Used),
            },
            _ => Err(TokenRefusal::Used),
        };
    }
    if let Ok(late) = now.duration_since(invited.expires_at) {
        return Err(TokenRefusal::Expired { ago: in_words(late) });
    }
    match holder {
        _ if invited.host.is_rejoin() => Ok(Step::Redeem),
        Some(holder) if holder.revoked => Err(TokenRefusal::HostRevoked(holder.name.clone())),
        Some(holder) if holder.key != attempt.key => Err(TokenRefusal::HostTaken(holder.name.clone())),
        _ => Ok(Step::Redeem),
    }
}

impl Ledger {
    /// Records a token, and clears away those that expired long ago.
    pub(crate) fn create_token(
        &self,
        id: &str,
        secret_hash: &[u8; 32],
        invitation: &Invitation,
        now: SystemTime,
    ) -> Result<(), LedgerError> {
        let Invitation { host, grants, addresses, expires_at } = invitation;
        self.write(|connection| {
            connection.execute(
                "INSERT INTO tokens (id, secret_hash, created_at, expires_at, grants, host, rejoin, addresses)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
                params![
                    id,
                    secret_hash,
                    to_unix(now),
                    to_unix(*expires_at),
                    to_lines(grants),
                    host.name().map(Label::as_str),
                    host.is_rejoin(),
                    to_lines(addresses)
                ],
            )?;
            let before = to_unix(now).saturating_sub(TOKENS_KEPT.as_secs() as i64);
            connection.execute("DELETE FROM tokens WHERE expires_at < ?1", [before])?;
            Ok(())
        })
    }

    /// Redeems a token: decides, and writes token and host in one transaction that is on the disk when this
    /// returns. Nothing may be signed for the host before.
    pub(crate) fn redeem(&self, attempt: &Redemption, now: SystemTime) -> Result<Redeemed, RedeemError> {
        self.write(|connection| {
            let token = find_token(connection, &attempt.token)?;
            let invitation = token.as_ref().map(|token| token.invitation.clone());
            let holder = find(connection, &attempt.host)?;
            match decide(token, holder.as_ref(), attempt, now)? {
                Step::Repeat(answer) => return Ok(Redeemed::Answered(answer)),
                Step::Resume(generation) => return Ok(Redeemed::ToIssue(generation)),
                Step::Redeem => {}
            }
            let invitation = invitation.ok_or(TokenRefusal::Unknown)?;
            mark_redeemed(connection, attempt, now)?;
            Ok(Redeemed::ToIssue(admit(connection, attempt, &invitation, holder, now)?))
        })
    }

    /// Keeps the answer to a redemption, for the same key's next attempt.
    pub(crate) fn keep_answer(&self, token: &str, answer: &[u8]) -> Result<(), LedgerError> {
        self.write(|connection| {
            connection.execute("UPDATE tokens SET answer = ?2 WHERE id = ?1", params![token, answer])?;
            Ok(())
        })
    }

    /// All tokens, the latest first.
    pub fn tokens(&self) -> Result<Vec<TokenRecord>, LedgerError> {
        let connection = self.lock()?;
        let mut statement = connection.prepare("SELECT * FROM tokens ORDER BY created_at DESC, id")?;
        let rows = statement.query_map([], |row| Ok((row.get::<_, String>("id")?, read(row))))?;
        rows.map(|row| {
            let (id, row) = row?;
            let row = row?;
            let redeemed_by = row.redeemed.and_then(|past| Label::new(&past.host).ok());
            Ok(TokenRecord { id, invitation: row.invitation, redeemed_by })
        })
        .collect()
    }

    /// Withdraws a token that was not redeemed. False when there is none.
    pub fn delete_token(&self, id: &str) -> Result<bool, LedgerError> {
        self.write(|connection| {
            let sql = "DELETE FROM tokens WHERE id = ?1 AND redeemed_at IS NULL";
            Ok(connection.execute(sql, [id])? == 1)
        })
    }
}

fn mark_redeemed(connection: &Connection, attempt: &Redemption, now: SystemTime) -> rusqlite::Result<()> {
    connection.execute(
        "UPDATE tokens SET redeemed_at = ?2, redeemed_host = ?3, redeemed_key = ?4 WHERE id = ?1",
        params![attempt.token, to_unix(now), attempt.host.as_str(), attempt.key],
    )?;
    let record = AuditRecord {
        at: now,
        who: attempt.host.to_string(),
        what: format!("join with token {}", attempt.token),
        outcome: Outcome::Granted,
        reason: String::new(),
    };
    append(connection, &record).map(drop)
}

/// Writes the host, and returns its generation. One that joins anew loses what it had, its node credentials too; one
/// that comes again with its own key keeps it.
fn admit(
    connection: &Connection,
    attempt: &Redemption,
    invitation: &Invitation,
    holder: Option<HostRecord>,
    now: SystemTime,
) -> rusqlite::Result<u32> {
    let before = holder.as_ref().map_or(0, |host| host.generation);
    let generation = before.saturating_add(u32::from(invitation.host.is_rejoin()));
    let (grants, addresses) = match holder.filter(|_| !invitation.host.is_rejoin()) {
        Some(host) => (host.grants, host.addresses),
        None => Default::default(),
    };
    let grants = to_lines(&with(grants, &invitation.grants));
    let addresses = to_lines(&with(addresses, &invitation.addresses));
    connection.execute(
        "INSERT OR REPLACE INTO hosts (name, grants, addresses, key, joined_at, generation, revoked)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, 0)",
        params![attempt.host.as_str(), grants, addresses, attempt.key, to_unix(now), generation],
    )?;
    Ok(generation)
}

fn with<T: Ord + Clone>(mut had: Vec<T>, more: &[T]) -> Vec<T> {
    had.extend(more.iter().cloned());
    had.sort();
    had.dedup();
    had
}

fn find_token(connection: &Connection, id: &str) -> Result<Option<TokenRow>, LedgerError> {
    let mut statement = connection.prepare_cached("SELECT * FROM tokens WHERE id = ?1")?;
    statement.query_row([id], |row| Ok(read(row))).optional()?.transpose()
}

fn read(row: &Row<'_>) -> Result<TokenRow, LedgerError> {
    let host: Option<String> = row.get("host")?;
    let host = host.map(|host| Label::new(&host)).transpose();
    let host = match (host.map_err(|_| LedgerError::Corrupt("token"))?, row.get("rejoin")?) {
        (None, _) => TokenHost::Any,
        (Some(name), false) => TokenHost::Only(name),
        (Some(name), true) => TokenHost::Rejoin(name),
    };
    let (grants, addresses): (String, String) = (row.get("grants")?, row.get("addresses")?);
    let redeemed = match row.get::<_, Option<i64>>("redeemed_at")? {
        None => None,
        Some(at) => Some(PastRedemption {
            at: from_unix(at),
            host: row.get("redeemed_host")?,
            key: row.get("redeemed_key")?,
            answer: row.get("answer")?,
        }),
    };
    let (grants, addresses) = (from_lines(&grants)?, from_lines(&addresses)?);
    let invitation = Invitation { host, grants, addresses, expires_at: from_unix(row.get("expires_at")?) };
    Ok(TokenRow { secret_hash: row.get("secret_hash")?, invitation, redeemed })
}
