//! `thinorigin cache`: what is local, whether it is whole, and away with it.

use super::args::{CacheCommand, CacheDir};
use super::{export, reading};
use crate::error::{Error, Result};
use crate::output;
use crate::size::Size;
use backends::cache::{Stock, Stored};
use serde::Serialize;
use std::collections::BTreeMap;

/// An object of the cache, for `list`.
#[derive(Serialize)]
struct Row {
    location: String,
    part: String,
    size: u64,
    local: u64,
    disk: u64,
    opened: Option<String>,
}

/// All objects of one location, for `usage`.
#[derive(Default, Serialize)]
struct Usage {
    location: String,
    objects: u64,
    local: u64,
    disk: u64,
}

/// What was found damaged, for `verify`.
#[derive(Serialize)]
struct Damage {
    location: String,
    part: String,
    start: u64,
    length: u64,
}

#[derive(Serialize)]
struct Report {
    whole: u64,
    damaged: Vec<Damage>,
}

#[derive(Serialize)]
struct Dropped {
    objects: u64,
    disk: u64,
}

pub(super) async fn run(command: CacheCommand, json: bool) -> Result<()> {
    match command {
        CacheCommand::List(dir) => list(&look(&dir)?, json),
        CacheCommand::Usage(dir) => usage(&look(&dir)?, json),
        CacheCommand::Verify(dir) => verify(&look(&dir)?, json),
        CacheCommand::Export(args) => export::run(args, json).await,
        CacheCommand::Drop { location, all, dir } => remove(look(&dir)?, location.as_deref(), all, json),
    }
}

fn look(dir: &CacheDir) -> Result<Stock> {
    let dir = match &dir.dir {
        Some(dir) => {
            if !dir.exists() {
                // Nobody has cached anything there yet, or its name is wrong.
                tracing::warn!("{}: there is no such directory", dir.display());
            }
            dir.clone()
        }
        None => reading::default_dir()?,
    };
    Ok(Stock::look(&dir)?)
}

fn list(stock: &Stock, json: bool) -> Result<()> {
    let rows: Vec<Row> = stock.objects().iter().map(Row::from).collect();
    if json {
        return output::json(&rows);
    }
    let header = ["location", "part", "size", "local", "disk", "opened"];
    let cells = |row: &Row| {
        let opened = row.opened.clone().unwrap_or_default();
        let local = format!("{} %", share(row.local, row.size));
        let (size, disk) = (Size(row.size).to_string(), Size(row.disk).to_string());
        vec![row.location.clone(), row.part.clone(), size, local, disk, opened]
    };
    output::table(&header, rows.iter().map(cells))
}

fn usage(stock: &Stock, json: bool) -> Result<()> {
    let mut locations: BTreeMap<&str, Usage> = BTreeMap::new();
    for object in stock.objects() {
        let location = object.key.identity.location.as_str();
        let usage = locations.entry(location).or_default();
        location.clone_into(&mut usage.location);
        usage.objects += 1;
        usage.local += object.local;
        usage.disk += object.allocated;
    }
    let usage: Vec<Usage> = locations.into_values().collect();
    if json {
        return output::json(&usage);
    }
    let row = |usage: &Usage| {
        vec![usage.location.clone(), Size(usage.local).to_string(), Size(usage.disk).to_string()]
    };
    let total = usage.iter().map(|usage| usage.disk).sum();
    output::table(&["location", "local", "disk"], usage.iter().map(row))?;
    output::line(&format!("{} of disk in all", Size(total)))
}

fn verify(stock: &Stock, json: bool) -> Result<()> {
    let bar = output::progress(stock.objects().iter().map(|object| object.local).sum(), "verifying");
    let mut report = Report { whole: 0, damaged: Vec::new() };
    for object in stock.objects() {
        let verified = object.verify(|bytes| {
            bar.add(bytes);
            true
        })?;
        report.whole += verified.whole;
        report.damaged.extend(verified.damaged.iter().map(|range| Damage {
            location: object.key.identity.location.clone(),
            part: object.key.part.clone(),
            start: range.start,
            length: range.end - range.start,
        }));
    }
    bar.clear();
    if json {
        output::json(&report)?;
    } else {
        for Damage { location, part, start, length } in &report.damaged {
            output::line(&format!("{location} ({part}): {length} bytes at {start:#x} are damaged"))?;
        }
        output::line(&format!("{} are whole", Size(report.whole)))?;
    }
    match report.damaged.len() {
        0 => Ok(()),
        count => Err(Error::failed(format!(
            "the cache holds damaged data in {count} places; it will be fetched again when it is read"
        ))),
    }
}

fn remove(stock: Stock, location: Option<&str>, all: bool, json: bool) -> Result<()> {
    let wanted = location.map(|location| {
        let parsed = reading::parse(location)?.absolute()?;
        // Local files are known by where their path leads.
        let path = parsed.as_path().and_then(|path| std::fs::canonicalize(path).ok());
        Ok::<_, Error>(path.map_or_else(|| parsed.to_string(), |path| path.display().to_string()))
    });
    let wanted = wanted.transpose()?;
    let dropped = match &wanted {
        _ if all => stock.drop_all(),
        Some(location) => stock.drop_objects(|object| object.key.identity.location == *location),
        None => Ok(Vec::new()),
    };
    let dropped = dropped.map_err(|error| match error.kind {
        backends::Kind::Denied => Error::refused(error.message),
        _ => error.into(),
    })?;
    if let (Some(location), []) = (&wanted, dropped.as_slice()) {
        return Err(Error::refused(format!("{location}: nothing of it is in the cache")));
    }
    let (objects, disk) = (dropped.len() as u64, dropped.iter().map(|object| object.allocated).sum());
    match json {
        true => output::json(&Dropped { objects, disk }),
        false => output::line(&format!("{} of disk given back", Size(disk))),
    }
}

impl From<&Stored> for Row {
    fn from(object: &Stored) -> Self {
        let &Stored { size, local, allocated: disk, .. } = object;
        let opened = object.opened.map(|at| humantime::format_rfc3339_seconds(at).to_string());
        Row {
            location: object.key.identity.location.clone(),
            part: object.key.part.clone(),
            size,
            local,
            disk,
            opened,
        }
    }
}

/// `part` of `whole` in percent, 100 only if it is all.
fn share(part: u64, whole: u64) -> u64 {
    let percent = (u128::from(part) * 100).checked_div(whole.into());
    percent.and_then(|percent| u64::try_from(percent).ok()).unwrap_or(100)
}
