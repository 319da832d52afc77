//! How firmly a closed gate is held: tighter step by step while its guest keeps running there, looser
//! again when it has left.
//!
//! A guest that has left a CPU still runs there for a moment now and then: a timer, an interrupt it could
//! not move. The idle class alone leaves it that. One that works there on purpose gets less with every look
//! until it has next to nothing, and stays there for a while after it stops.

use std::time::Duration;

use conuma_hypervisor::gate::Grip;

use super::excuse::Excuse;

/// Quiet looks in a row before the grip is loosened by one step.
const QUIET_LOOKS: u32 = 10;

/// A vCPU that ran for so many thousandths of its quota has used it up.
const USED_UP: u32 = 800;

/// The brake on one vCPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Brake {
    grip: Grip,
    /// It was closed as firmly as this, or has been loosened to it since.
    least: Grip,
    /// Nothing excuses what runs there.
    strict: bool,
    quiet: u32,
}

impl Brake {
    /// On a vCPU whose CPU is offline: its thread would run on another's.
    pub(super) const STOPPED: Self = Self { grip: Grip::FIRM, least: Grip::FIRM, strict: true, quiet: 0 };

    /// A gate that was just closed with this grip.
    pub(super) fn closed(grip: Grip) -> Self {
        Self { grip, least: grip, strict: false, quiet: 0 }
    }

    /// How firm it is.
    pub(super) fn grip(self) -> Grip {
        self.grip
    }

    /// The guest is not to be blamed for what it runs: no firmer than the gate was closed, and never so firm that it could not do
    /// its work. A guest that boots needs every vCPU. When the excuse has ended the gate is as firm as it was closed.
    pub(super) fn release(&mut self, excuse: Excuse) -> Grip {
        let most = match excuse {
            _ if self.strict => Grip::FIRM,
            Excuse::Busy => Grip::WORKING,
            Excuse::Boots => Grip::SOFT,
        };
        (self.grip, self.quiet) = (self.least.min(most), 0);
        self.grip
    }

    /// A look: the vCPU ran for `ran` of the last `window`, of which `stray` thousandths are what a guest does in passing.
    /// One that used up what its quota leaves it would have run for longer. How firm it should be from now on.
    pub(super) fn seen(&mut self, ran: Duration, window: Duration, stray: u32) -> Grip {
        // After an excuse it may be softer.
        self.grip = self.grip.max(self.least);
        let most = stray.min(self.grip.share().map_or(stray, |quota| quota * USED_UP / 1000));
        if ran.as_micros() * 1000 > u128::from(most) * window.as_micros() {
            self.quiet = 0;
            self.grip = self.grip.tighter();
        } else {
            self.quiet += 1;
            if self.quiet >= QUIET_LOOKS {
                self.quiet = 0;
                self.grip = self.grip.looser();
                self.least = self.least.min(self.grip);
            }
        }
        self.grip
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOOK: Duration = Duration::from_secs(1);
    const STRAY: u32 = 50;

    #[test]
    fn a_busy_guest_is_braked_to_the_utmost_and_a_quiet_one_released_slowly() {
        let mut brake = Brake::closed(Grip::SOFT);
        let mut looks = 0;
        while brake.grip() != Grip::FIRM {
            let before = brake.grip();
            assert!(brake.seen(LOOK / 2, LOOK, STRAY) > before);
            looks += 1;
        }
        assert!(looks < 10, "it takes {looks} looks to stop a guest");
        let mut quiet = 0;
        while brake.grip() != Grip::SOFT {
            brake.seen(LOOK / 1000, LOOK, STRAY);
            quiet += 1;
        }
        assert!(quiet >= 5 * looks, "released after {quiet} quiet looks");
    }

    #[test]
    fn a_guest_that_never_stops_stays_where_its_quota_is_least() {
        for stray in [STRAY, 150, 250] {
            let mut brake = Brake::closed(Grip::SOFT);
            let mut ran = Duration::ZERO;
            for look in 0..600 {
                // It gets what its quota leaves it, or half of the CPU beside its holder.
                let gets = brake.grip().share().map_or(LOOK / 2, |quota| LOOK * quota / 1000);
                brake.seen(gets, LOOK, stray);
                ran += if look >= 10 { gets } else { Duration::ZERO };
            }
            assert!(ran < LOOK * 590 * 15 / 1000, "with {stray}: {ran:?} of 590 s");
        }
    }

    #[test]
    fn an_excuse_undoes_what_the_brake_did_and_leaves_a_guest_that_was_gated_firmly_time_to_work() {
        let mut brake = Brake::closed(Grip::SOFT);
        brake.seen(LOOK, LOOK, STRAY);
        assert_eq!(brake.release(Excuse::Busy), Grip::SOFT);
        let mut firm = Brake::closed(Grip::FIRM);
        assert_eq!(firm.release(Excuse::Busy), Grip::WORKING);
        assert_eq!(firm.seen(LOOK / 1000, LOOK, STRAY), Grip::FIRM, "as it was closed, at once");
        while firm.seen(LOOK / 1000, LOOK, STRAY) >= Grip::WORKING {}
        let loosened = firm.grip();
        firm.seen(LOOK, LOOK, STRAY);
        assert_eq!(firm.release(Excuse::Busy), loosened);
    }

    #[test]
    fn a_guest_that_boots_gets_every_vcpu_whose_cpu_is_online() {
        let mut firm = Brake::closed(Grip::FIRM);
        assert_eq!(firm.release(Excuse::Boots), Grip::SOFT);
        assert_eq!(firm.seen(LOOK / 1000, LOOK, STRAY), Grip::FIRM, "once it has booted");
        let mut stopped = Brake::STOPPED;
        assert_eq!(stopped.release(Excuse::Boots), Grip::FIRM);
    }

    #[test]
    fn a_stray_interrupt_is_no_reason_to_brake() {
        let mut brake = Brake::closed(Grip::SOFT);
        for _ in 0..100 {
            assert_eq!(brake.seen(LOOK / 100, LOOK, STRAY), Grip::SOFT);
        }
    }
}
