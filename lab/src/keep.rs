//! Memory in a guest that its kernel cannot give away: locked against eviction, or pinned for a device that might write to it.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use conuma_linux::sys::Kept;

/// How it is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Hold {
    /// The kernel may move it to other pages, but needs room for that.
    Locked,
    /// The kernel may not even move it.
    Pinned,
}

const PAGE: usize = 4096;

/// Between looks whether it is to end: what runs in a guest must leave it at rest.
const PERIOD: Duration = Duration::from_millis(500);

/// Keeps `bytes` of memory filled until the file `held` is removed, which is made once it is kept. An error if any of it has
/// changed by then.
pub fn keep(bytes: usize, hold: Hold, held: &Path) -> Result<()> {
    let mut memory = vec![0_u8; bytes];
    // Pages that follow each other differ: none is taken for the next.
    for (page, bytes) in memory.chunks_mut(PAGE).enumerate() {
        bytes.fill(pattern(page));
    }
    let kept = match hold {
        Hold::Locked => Kept::locked(memory).context("locking memory")?,
        Hold::Pinned => Kept::pinned(memory).context("pinning memory")?,
    };
    std::fs::write(held, "").with_context(|| format!("writing {}", held.display()))?;
    while held.exists() {
        std::thread::sleep(PERIOD);
    }
    for (page, bytes) in kept.chunks(PAGE).enumerate() {
        ensure!(bytes.iter().all(|byte| *byte == pattern(page)), "page {page} is not what was written to it");
    }
    Ok(())
}

fn pattern(page: usize) -> u8 {
    (page % 251) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_kept_until_the_file_is_removed() {
        let dir = tempfile::tempdir().expect("a directory");
        let held = dir.path().join("held");
        std::thread::scope(|scope| {
            let keeper = scope.spawn(|| keep(64 * PAGE, Hold::Locked, &held));
            while !held.exists() {
                std::thread::sleep(Duration::from_millis(5));
            }
            std::fs::remove_file(&held).expect("it is there");
            keeper.join().expect("no panic").expect("nothing changed");
        });
    }
}
