//! What an agent sends unasked, passed on as long as it is little. A guest that sends without end is not to keep the host
//! busy: what is too much is counted and not even decoded.

use std::sync::Arc;
use std::time::{Duration, Instant};

use conuma_agent_proto::{DecodeError, Pushed, Reply, decode_response};
use tokio::sync::mpsc;

use super::link::LinkEvent;

/// So many in this time at most: twice what an honest agent sends for two resources.
const MOST: u32 = 8;
const WHILE: Duration = Duration::from_secs(1);

/// Passes on what the agent of one VM sends unasked, over all its connections.
#[derive(Debug)]
pub(super) struct Pushes {
    events: mpsc::Sender<LinkEvent>,
    since: Instant,
    taken: u32,
    /// Not passed on since the last that was.
    dropped: u64,
}

impl Pushes {
    pub(super) fn new(events: mpsc::Sender<LinkEvent>, now: Instant) -> Self {
        Self { events, since: now, taken: 0, dropped: 0 }
    }

    /// Takes one; an error is a reason to end the connection.
    pub(super) fn take(&mut self, frame: &[u8], now: Instant) -> Result<(), DecodeError> {
        if !self.has_room(now) {
            self.dropped += 1;
            return Ok(());
        }
        let Ok(Reply::Pushed(Pushed { resource, report })) = decode_response(frame)?.body else {
            return Err(DecodeError::Missing("the pushed report"));
        };
        let event = LinkEvent::Pressed { resource, report: Arc::new(report), dropped: self.dropped };
        match self.events.try_send(event) {
            Ok(()) => self.dropped = 0,
            // Whoever listens is busy with what came before, or has gone.
            Err(_) => self.dropped += 1,
        }
        Ok(())
    }

    fn has_room(&mut self, now: Instant) -> bool {
        if now.saturating_duration_since(self.since) >= WHILE {
            (self.since, self.taken) = (now, 0);
        }
        self.taken = self.taken.saturating_add(1);
        self.taken <= MOST
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use conuma_agent_proto::{Report, RequestId, Resource, Response, encode_response};

    fn frame() -> Vec<u8> {
        let pushed = Pushed { resource: Resource::Memory, report: Report::default() };
        encode_response(&Response { id: RequestId::PUSHED, body: Ok(Reply::Pushed(pushed)) })
    }

    fn dropped(events: &mut mpsc::Receiver<LinkEvent>) -> Vec<u64> {
        let pressed = std::iter::from_fn(|| events.try_recv().ok()).map(|event| match event {
            LinkEvent::Pressed { dropped, .. } => dropped,
            other => unreachable!("{other:?}"),
        });
        pressed.collect()
    }

    #[test]
    fn a_flood_is_cut_counted_and_over_when_it_is_over() {
        let (events, mut passed) = mpsc::channel(16);
        let begin = Instant::now();
        let mut pushes = Pushes::new(events, begin);
        let millis = Duration::from_millis(1);
        for n in 0..1000 {
            assert_eq!(pushes.take(&frame(), begin + n * millis), Ok(()));
        }
        assert_eq!(dropped(&mut passed), [0; MOST as usize]);
        // What is not passed on is not looked at.
        assert_eq!(pushes.take(b"rubbish", begin + 999 * millis), Ok(()));
        assert_eq!(pushes.take(&frame(), begin + 1000 * millis), Ok(()));
        assert_eq!(dropped(&mut passed), [993]);
        assert!(pushes.take(b"rubbish", begin + 1001 * millis).is_err());
    }

    #[test]
    fn what_nobody_takes_is_not_kept() {
        let (events, mut passed) = mpsc::channel(1);
        let begin = Instant::now();
        let mut pushes = Pushes::new(events, begin);
        for _ in 0..3 {
            assert_eq!(pushes.take(&frame(), begin), Ok(()));
        }
        assert_eq!(dropped(&mut passed), [0]);
        assert_eq!(pushes.take(&frame(), begin), Ok(()));
        assert_eq!(dropped(&mut passed), [2]);
        drop(passed);
        assert_eq!(pushes.take(&frame(), begin), Ok(()));
    }
}
