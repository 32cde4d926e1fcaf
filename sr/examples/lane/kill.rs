//! Verbs that are killed, and what is left after recovery.

use super::story::{Result, check, controller, output};
use std::fs;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

const TEMPLATE: &str = "/tmp/killed.raw";

/// When a verb is killed, in milliseconds after it was started; the later ones let it end.
const MOMENTS: [u64; 12] = [5, 8, 11, 14, 17, 20, 24, 28, 34, 40, 50, 80];

/// Runs one verb to its end.
fn smctl(words: &[&str]) -> Result<()> {
    let status =
        Command::new(std::env::current_exe()?).arg("smctl").args(words).stdout(Stdio::null()).status()?;
    if status.success() { Ok(()) } else { Err(format!("{words:?} failed").into()) }
}

/// Starts one verb and kills it after `moment`; says whether it was killed.
fn killed(words: &[&str], moment: u64) -> Result<bool> {
    let mut child = Command::new(std::env::current_exe()?)
        .arg("smctl")
        .args(words)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    sleep(Duration::from_millis(moment));
    child.kill()?;
    Ok(child.wait()?.code().is_none())
}

/// What must hold after recovery: a record for each device id, and nothing suspended or half made.
fn whole() -> Result<usize> {
    let mut smctl = controller(false)?;
    let sr = smctl.sr_info("kill")?;
    let vdis = smctl.vdi_list("kill")?;
    let suspended = output("dmsetup", &["info", "-c", "--noheadings", "-S", "suspended=1", "-o", "name"])?;
    if !suspended.trim().is_empty() && !suspended.contains("No devices") {
        return Err(format!("suspended: {suspended}").into());
    }
    let pool = format!("kill-{}", sr.pool.replace('-', "--"));
    output("dmsetup", &["message", &pool, "0", "reserve_metadata_snap"])?;
    let tmeta = format!("/dev/mapper/{pool}_tmeta");
    let ids = output("thin_ls", &["-m", "--no-headers", "-o", "DEV", &tmeta])?;
    output("dmsetup", &["message", &pool, "0", "release_metadata_snap"])?;
    let (ids, disks) = (ids.split_whitespace().count(), vdis.iter().filter(|vdi| vdi.kind == "disk").count());
    if ids != disks {
        return Err(format!("{ids} device ids for {disks} disks").into());
    }
    let attached = vdis.iter().filter(|vdi| vdi.attached).count();
    let loops = output("losetup", &["--associated", TEMPLATE])?.lines().count();
    if loops != usize::from(attached > 0) {
        return Err(format!("{attached} disks are attached, on {loops} loop devices").into());
    }
    Ok(disks)
}

/// Kills each verb at each moment, recovers, and looks; on `device`, which must be empty.
pub(crate) fn sweep(device: &str) -> Result<()> {
    fs::write(TEMPLATE, vec![7; 1 << 20])?;
    smctl(&["create", "kill", device])?;
    smctl(&["introduce", "kill", TEMPLATE])?;
    smctl(&["clone", "kill", "killed", "kept"])?;
    // The verb, and what leads back to where it began; that may have nothing to do.
    let verbs: [(&[&str], &[&str]); 6] = [
        (&["clone", "kill", "killed", "x"], &["destroy", "kill", "x"]),
        (&["attach", "kill", "kept"], &["detach", "kill", "kept"]),
        (&["destroy", "kill", "y"], &["clone", "kill", "killed", "y"]),
        (&["detach", "kill", "kept"], &["attach", "kill", "kept"]),
        (&["snapshot", "kill", "kept", "x"], &["destroy", "kill", "x"]),
        (&["destroy", "kill", "y"], &["clone", "kill", "kept", "y"]),
    ];
    for (verb, back) in verbs {
        let mut kills = 0;
        for moment in MOMENTS {
            // Where it fails there was nothing to lead back from.
            let begun = smctl_quietly(back)?;
            kills += usize::from(killed(verb, moment)?);
            smctl(&["sr-attach", "kill"])?;
            whole().map_err(|e| {
                format!("{verb:?} killed after {moment} ms, {back:?} before was {begun}: {e}")
            })?;
        }
        check(&format!("{verb:?}, killed {kills} times, leaves nothing half made"), kills > 0)?;
    }
    smctl_quietly(&["detach", "kill", "kept"])?;
    smctl(&["sr-destroy", "kill"])?;
    check("no device is left", output("dmsetup", &["ls"])?.trim() == "No devices found")?;
    println!("told");
    Ok(())
}

fn smctl_quietly(words: &[&str]) -> Result<bool> {
    let status = Command::new(std::env::current_exe()?)
        .arg("smctl")
        .args(words)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()?;
    Ok(status.success())
}
