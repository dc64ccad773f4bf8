//! What is read of a request's body before anything of it is sent on, so that somebody can be shown it, and the room that it
//! takes.

use std::net::IpAddr;

use baremesh_model::http::Headers;
use bytes::{Bytes, BytesMut};

use crate::external_authorization::{Held, Room};
use crate::proxy::http::body::BodyError;
use crate::proxy::http::h1::Frame;

/// What was read of a body before anything of it was sent on.
#[derive(Default)]
pub(super) struct Ahead {
    /// What was shown to somebody.
    pub(super) shown: Bytes,
    /// What came after that.
    pub(super) data: BytesMut,
    /// The room that both take.
    held: Vec<Held>,
    pub(super) trailers: Option<Headers>,
    pub(super) is_over: bool,
}

impl Ahead {
    /// The next frame of what was read; nothing where the caller is to be heard again.
    pub(super) fn next(&mut self) -> Option<Option<Frame>> {
        if !self.shown.is_empty() {
            return Some(Some(Frame::Data(std::mem::take(&mut self.shown))));
        }
        if !self.data.is_empty() {
            return Some(Some(Frame::Data(self.data.split().freeze())));
        }
        // What went last was taken.
        self.held = Vec::new();
        if let Some(trailers) = self.trailers.take() {
            return Some(Some(Frame::Trailers(trailers)));
        }
        self.is_over.then_some(None)
    }

    pub(super) fn len(&self) -> usize {
        self.shown.len() + self.data.len()
    }

    /// Takes room for more, in steps: who sends little holds little.
    pub(super) fn hold(&mut self, length: usize, room: &RoomAhead<'_>) -> Result<(), UnreadAhead> {
        let mut wanted = length * room.times;
        if let Some(last) = self.held.last_mut() {
            wanted -= last.use_up(wanted);
        }
        if wanted > 0 {
            self.held.push(room.room.take(room.host, wanted).ok_or(UnreadAhead::NoRoom)?);
        }
        Ok(())
    }
}

/// Where a body that is read ahead takes its place.
#[derive(Clone, Copy)]
pub(in crate::proxy::http) struct RoomAhead<'a> {
    /// The provider's.
    pub(in crate::proxy::http) room: &'a Room,
    /// Where the body comes from.
    pub(in crate::proxy::http) host: IpAddr,
    /// How many times it is held.
    pub(in crate::proxy::http) times: usize,
}

/// Why a body was not read ahead.
#[derive(Debug)]
pub(in crate::proxy::http) enum UnreadAhead {
    /// There is no room for it.
    NoRoom,
    /// It ended otherwise than it should.
    Body(BodyError),
}
