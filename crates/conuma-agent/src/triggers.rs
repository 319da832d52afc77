//! Being told by the kernel when tasks wait long for a CPU or for memory, for the host that has asked for it.
//!
//! The kernel watches, with a thread of its own that sleeps while nobody waits: an agent whose triggers do not fire does
//! not run. Where the kernel cannot, nobody does: to look every few hundred milliseconds would cost the guest more than the
//! host gains by it.

use std::error::Error as _;
use std::future::pending;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use conuma_agent_proto::{AgentError, Reply, Resource, Trigger};
use conuma_linux::procfs::ProcError;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, sleep_until};

use crate::kernel::Kernel;
use crate::warn;

/// Between two pushes for the same resource, at least. The kernel tells once a window at most, which is longer.
const PAUSE: Duration = Duration::from_millis(250);

/// Without `CAP_SYS_RESOURCE` the kernel takes multiples of this as windows only.
const UNPRIVILEGED: Duration = Duration::from_secs(2);

/// The triggers of one conversation; none at first.
#[derive(Debug, Default)]
pub struct Triggers {
    cpu: Option<Armed>,
    memory: Option<Armed>,
}

/// A trigger that is set.
#[derive(Debug)]
struct Armed {
    trigger: Trigger,
    fd: AsyncFd<OwnedFd>,
    /// Before that it is not waited for.
    not_before: Option<Instant>,
}

/// What becomes of a trigger.
enum Told {
    Fired,
    Gone,
}

impl Triggers {
    /// Sets these triggers in the place of those that are set; tells which the kernel took. Fails if it takes none of them.
    pub fn arm(
        &mut self,
        kernel: &dyn Kernel,
        cpu: Option<Trigger>,
        memory: Option<Trigger>,
    ) -> Result<Reply, AgentError> {
        *self = Self::default();
        let mut refused = Vec::new();
        let mut set = |resource, asked: Option<Trigger>| match Armed::set(kernel, resource, asked?) {
            Ok(armed) => Some(armed),
            Err(why) => {
                refused.push(why);
                None
            }
        };
        self.cpu = set(Resource::Cpu, cpu);
        self.memory = set(Resource::Memory, memory);
        if self.cpu.is_none() && self.memory.is_none() && !refused.is_empty() {
            return Err(AgentError::Unsupported(refused.join("; ")));
        }
        for why in refused {
            warn!("the host is not told at once of pressure: {why}");
        }
        let set = |armed: &Option<Armed>| armed.as_ref().map(|armed| armed.trigger);
        Ok(Reply::Watching { cpu: set(&self.cpu), memory: set(&self.memory) })
    }

    /// Comes back when a trigger has fired; never while none is set. Loses nothing when it is dropped before.
    pub async fn fired(&mut self) -> Resource {
        loop {
            let (resource, told) = tokio::select! {
                told = Armed::told(self.cpu.as_ref()) => (Resource::Cpu, told),
                told = Armed::told(self.memory.as_ref()) => (Resource::Memory, told),
            };
            let armed = match resource {
                Resource::Cpu => &mut self.cpu,
                Resource::Memory => &mut self.memory,
            };
            match (told, armed.as_mut()) {
                (Told::Fired, Some(fired)) => {
                    fired.not_before = Some(Instant::now() + PAUSE);
                    return resource;
                }
                _ => {
                    warn!("the kernel watches the pressure of {resource:?} no more");
                    *armed = None;
                }
            }
        }
    }
}

impl Armed {
    /// Sets a trigger: as it is asked for or, where the kernel does not take that, with the next longer window that
    /// everybody may have and the same share of it.
    fn set(kernel: &dyn Kernel, resource: Resource, asked: Trigger) -> Result<Self, String> {
        let (trigger, fd) = match kernel.pressure_trigger(resource, asked) {
            Ok(fd) => (asked, fd),
            Err(ProcError::Trigger { source, .. }) if source.kind() == io::ErrorKind::InvalidInput => {
                let slower = for_everybody(asked);
                (slower, kernel.pressure_trigger(resource, slower).map_err(why)?)
            }
            Err(error) => return Err(why(error)),
        };
        #[expect(deprecated, reason = "an OwnedFd stays open and the same, which is all that the new form asks for")]
        let fd = AsyncFd::with_interest(fd, Interest::PRIORITY);
        let fd = fd.map_err(|error| format!("a trigger for {resource:?} cannot be waited for: {error}"))?;
        Ok(Self { trigger, fd, not_before: None })
    }

    async fn told(this: Option<&Self>) -> Told {
        let Some(Self { fd, not_before, .. }) = this else { return pending().await };
        if let Some(not_before) = *not_before {
            sleep_until(not_before).await;
        }
        match fd.ready(Interest::PRIORITY | Interest::ERROR).await {
            Ok(mut guard) => {
                let ready = guard.ready();
                guard.clear_ready();
                let ended = ready.is_error() || ready.is_read_closed();
                if ready.is_priority() && !ended { Told::Fired } else { Told::Gone }
            }
            Err(_) => Told::Gone,
        }
    }
}

fn why(error: ProcError) -> String {
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

/// The same share of the next window that is a multiple of [`UNPRIVILEGED`].
fn for_everybody(Trigger { stall, window }: Trigger) -> Trigger {
    let windows = window.as_micros().div_ceil(UNPRIVILEGED.as_micros()).max(1);
    let longer = UNPRIVILEGED.as_micros() * windows;
    let stall = stall.as_micros() * longer / window.as_micros().max(1);
    let time = |micros: u128| Duration::from_micros(u64::try_from(micros).unwrap_or(u64::MAX));
    Trigger { stall: time(stall), window: time(longer) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_gets_the_same_share_of_a_longer_window() {
        let check = |asked: (u64, u64), expected: (u64, u64)| {
            let trigger = |(stall, window)| Trigger {
                stall: Duration::from_millis(stall),
                window: Duration::from_millis(window),
            };
            assert_eq!(for_everybody(trigger(asked)), trigger(expected));
        };
        check((100, 1000), (200, 2000));
        check((50, 500), (200, 2000));
        check((2000, 2000), (2000, 2000));
        check((300, 3000), (400, 4000));
        check((10_000, 10_000), (10_000, 10_000));
    }
}
