//! `smctl sr watch`: pools are grown while no other command runs.
//!
//! A look at a pool is one request to the kernel. Nothing is held between looks, so the process may be stopped, killed and
//! replaced whenever, and two of them do no harm.

use super::{show, work};
use crate::error::Result;
use crate::output;
use sr::{Controller, Tended};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use uuid::Uuid;

/// How long an SR is left alone whose pool is to grow and cannot: trying takes LVM, and templates that do not answer.
const LEFT_ALONE: Duration = Duration::from_secs(15);

/// How often it looks whether it is to end.
const ATTENTION: Duration = Duration::from_millis(100);

/// Looks once.
pub(super) fn once(controller: &mut Controller, json: bool) -> Result<()> {
    let tended = controller.tend(&BTreeSet::new())?;
    if json {
        return output::json(&tended);
    }
    tended.iter().for_each(tell);
    Ok(())
}

/// Looks every `interval` until SIGINT or SIGTERM.
pub(super) fn run(controller: &mut Controller, interval: Duration) -> Result<()> {
    let runtime = crate::cli::runtime()?;
    let stop = work::stopped(&runtime)?;
    let mut said: BTreeMap<Uuid, Vec<String>> = BTreeMap::new();
    let mut left: BTreeMap<Uuid, Instant> = BTreeMap::new();
    // Without a supervisor there is nobody to tell.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    while !stop.load(Ordering::Relaxed) {
        let now = Instant::now();
        left.retain(|_, until| *until > now);
        match controller.tend(&left.keys().copied().collect()) {
            Ok(all) => {
                for mut tended in all {
                    if !tended.warnings.is_empty() && tended.steps.is_empty() {
                        left.insert(tended.uuid, now + LEFT_ALONE);
                    }
                    // The same again is not news.
                    let last = said.insert(tended.uuid, tended.warnings.clone());
                    if last.as_ref() == Some(&tended.warnings) {
                        tended.warnings.clear();
                    }
                    tell(&tended);
                }
            }
            Err(error) => show::warn(&[error.to_string()]),
        }
        let next = now + interval;
        while Instant::now() < next && !stop.load(Ordering::Relaxed) {
            std::thread::sleep(ATTENTION);
        }
    }
    Ok(())
}

fn tell(tended: &Tended) {
    for step in &tended.steps {
        output::note("smctl", &format!("SR '{}': {step}", tended.name));
    }
    let warnings: Vec<_> =
        tended.warnings.iter().map(|warning| format!("SR '{}': {warning}", tended.name)).collect();
    show::warn(&warnings);
}
