//! What happens, told to whoever listens. Bounded: a slow listener misses events and learns how many.

use std::sync::Arc;
use std::sync::Mutex;

use conuma_api::{Event, EventKind};
use tokio::sync::broadcast;

use crate::clock::{Clock, unix_ms};

/// Events kept for a slow listener.
const BACKLOG: usize = 1024;

/// Where events are told.
#[derive(Debug, Clone)]
pub struct Bus {
    clock: Clock,
    sender: broadcast::Sender<Arc<Event>>,
    sequence: Arc<Mutex<u64>>,
}

impl Bus {
    /// A bus without listeners.
    pub fn new(clock: Clock) -> Self {
        let (sender, _) = broadcast::channel(BACKLOG);
        Self { clock, sender, sequence: Arc::default() }
    }

    /// Tells everyone.
    pub fn tell(&self, what: EventKind) {
        // Numbering and sending are one step, so that numbers arrive in order.
        let mut sequence = self.sequence.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        *sequence += 1;
        let event = Event { sequence: *sequence, unix_ms: unix_ms(self.clock.now()), what };
        // Nobody listening is fine.
        let _ = self.sender.send(Arc::new(event));
    }

    /// Events from now on.
    pub fn listen(&self) -> Listener {
        Listener { clock: self.clock, receiver: self.sender.subscribe() }
    }
}

/// One reader of the bus.
#[derive(Debug)]
pub struct Listener {
    clock: Clock,
    receiver: broadcast::Receiver<Arc<Event>>,
}

impl Listener {
    /// The next event; `None` when the daemon ends. Says how many events are missing where this
    /// listener was too slow.
    pub async fn next(&mut self) -> Option<Arc<Event>> {
        match self.receiver.recv().await {
            Ok(event) => Some(event),
            Err(broadcast::error::RecvError::Closed) => None,
            Err(broadcast::error::RecvError::Lagged(events)) => {
                let what = EventKind::Missed { events };
                Some(Arc::new(Event { sequence: 0, unix_ms: unix_ms(self.clock.now()), what }))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_slow_listener_learns_how_much_it_missed() {
        let bus = Bus::new(Clock::start());
        let mut listener = bus.listen();
        for transfer in 0..(BACKLOG as u64 + 10) {
            bus.tell(EventKind::TransferWaiting { transfer });
        }
        let first = listener.next().await.map(|event| event.what.clone());
        assert_eq!(first, Some(EventKind::Missed { events: 10 }));
        let second = listener.next().await.map(|event| event.sequence);
        assert_eq!(second, Some(11));
    }
}
