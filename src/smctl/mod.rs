//! The commands of `smctl`.

mod args;
mod dump;
mod origins;
mod show;
mod watch;
mod work;
mod world;

use crate::cli::args::Cache;
use crate::cli::map;
use crate::error::{Error, Result};
use crate::output;
use args::{Command, Copy, Global, Smctl, Sr, Vdi};
use backends::Location;
use clap::{CommandFactory, Parser};
use origins::Server;
use sr::{
    Controller, ErrorKind, SrCreate, SrDestroy, SrGrow, SrIntroduce, SrRestore, VdiClone, VdiCreate,
    VdiIntroduce,
};
use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Duration;

/// Parses the command line and runs it. Exit codes: 0 done, 1 failed, 2 usage, 3 refused.
pub fn main() -> ExitCode {
    let Smctl { command, global } = Smctl::parse();
    crate::telemetry::start(global.verbose, false);
    let open = |options: &sr::Options, server: Server| Controller::open(options, Box::new(server));
    output::exit("smctl", run(command, &Host { global: &global, open: &open }))
}

/// The host that a command is for.
struct Host<'a> {
    global: &'a Global,
    /// Makes a controller of its SRs, whose templates are served by this server.
    open: &'a dyn Fn(&sr::Options, Server) -> sr::Result<Controller>,
}

impl Host<'_> {
    /// The server at the control socket; `options` go to one that is started.
    fn server(&self, options: Vec<OsString>) -> Result<Server> {
        Server::new(self.global.admin.clone(), options)
    }

    fn controller_with(&self, dry_run: bool, server: Server) -> Result<Controller> {
        let options = sr::Options { dry_run, ..Default::default() };
        Ok((self.open)(&options, server)?)
    }

    fn controller(&self, dry_run: bool) -> Result<Controller> {
        self.controller_with(dry_run, self.server(Vec::new())?)
    }
}

fn run(command: Command, host: &Host<'_>) -> Result<()> {
    let json = host.global.json;
    match command {
        Command::Sr(command) => run_sr(command, host),
        Command::Vdi(command) => run_vdi(command, host),
        Command::HostVolumes => world::volumes(&host.controller(false)?.host_volumes()?, json),
        Command::Tree { sr } => {
            let trees = host.controller(false)?.tree(sr.as_deref())?;
            world::trees(trees, &host.server(Vec::new())?, json)
        }
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Smctl::command(), "smctl", &mut script);
            output::write_stdout(&script)
        }
        Command::Man { dir } => output::manual(Smctl::command(), &dir),
    }
}

fn run_sr(command: Sr, host: &Host<'_>) -> Result<()> {
    let json = host.global.json;
    let open = |dry_run| host.controller(dry_run);
    match command {
        Sr::Create { name, pool_size, chunk, devices, change } => {
            let (pool_size, chunk) = (pool_size.map(|size| size.0), chunk.map(|size| size.0));
            let request = SrCreate { name, devices, pool_size, chunk };
            show::made(open(change.dry_run)?.sr_create(&request)?, |sr| sr.uuid, json)
        }
        Sr::Introduce { name, pool_size, adopt_pool, grow, vg, change } => {
            let pool_size = pool_size.map(|size| size.0);
            let request = SrIntroduce { name, vg, pool_size, adopt_pool, grows: grow };
            show::made(open(change.dry_run)?.sr_introduce(&request)?, |sr| sr.uuid, json)
        }
        Sr::Probe { target } => show::srs(&open(false)?.sr_probe(&target)?, json),
        Sr::List => show::srs(&open(false)?.sr_list()?, json),
        Sr::Info { sr } => show::sr(&open(false)?.sr_info(&sr)?, json),
        Sr::Attach { sr, change } => show::done(&open(change.dry_run)?.sr_attach(&sr)?, json),
        // An SR describes itself, so a host keeps nothing of it that detaching does not drop.
        Sr::Detach { sr, change } | Sr::Forget { sr, change } => {
            show::done(&open(change.dry_run)?.sr_detach(&sr)?, json)
        }
        Sr::Recover { sr, change } => show::done(&open(change.dry_run)?.sr_recover(&sr)?, json),
        Sr::Dump { sr, file } => dump::write(open(false)?.sr_dump(&sr)?, file.as_deref(), json),
        Sr::Restore { file, locations, leave_unknown, change } => {
            let dump = dump::read(&file, &locations)?;
            show::done(&open(change.dry_run)?.sr_restore(SrRestore { dump, leave_unknown })?, json)
        }
        Sr::Grow { sr, to, automatically, change } => {
            let request = SrGrow { size: to.map(|size| size.0), automatically };
            show::done(&open(change.dry_run)?.sr_grow(&sr, &request)?, json)
        }
        Sr::Watch { once: true, dry_run, .. } => watch::once(&mut open(dry_run)?, json),
        Sr::Watch { once: false, .. } if json => {
            Err(Error::usage("--json needs --once here, for it is one document"))
        }
        Sr::Watch { once: false, interval, .. } => {
            watch::run(&mut open(false)?, Duration::from_secs(interval))
        }
        Sr::Destroy { sr, force, change } => {
            show::done(&open(change.dry_run)?.sr_destroy(&SrDestroy { sr, force })?, json)
        }
    }
}

fn run_vdi(command: Vdi, host: &Host<'_>) -> Result<()> {
    let json = host.global.json;
    let open = |dry_run| host.controller(dry_run);
    // A server that is started for this keeps blocks where it is told to.
    let open_with = |dry_run, cache: Cache| host.controller_with(dry_run, host.server(cache.to_args())?);
    match command {
        Vdi::Introduce { sr, location, name, patience, change } => {
            // What is wrong with the text itself is a matter of usage; that it cannot be opened is not.
            location.parse::<Location>().map_err(|error| Error::usage(error.message))?;
            let request = VdiIntroduce { location, name, patience };
            show::made(open(change.dry_run)?.vdi_introduce(&sr, &request)?, |vdi| vdi.uuid, json)
        }
        Vdi::Create { sr, name, size, preallocate: true, change } => {
            let request = VdiCreate { name, size: size.0 };
            let mut controller = open(change.dry_run)?;
            let report = work::watched("zeroing", |work| controller.vdi_preallocate(&sr, &request, work))?;
            show::made(report, |vdi| vdi.uuid, json)
        }
        Vdi::Create { sr, name, size, preallocate: false, change } => {
            let request = VdiCreate { name, size: size.0 };
            show::made(open(change.dry_run)?.vdi_create(&sr, &request)?, |vdi| vdi.uuid, json)
        }
        Vdi::Clone(Copy { sr, vdi, name, size, change }) => {
            let request = VdiClone { name, size: size.map(|size| size.0) };
            show::made(open(change.dry_run)?.vdi_clone(&sr, &vdi, &request)?, |vdi| vdi.uuid, json)
        }
        Vdi::Snapshot(Copy { sr, vdi, name, size, change }) => {
            let request = VdiClone { name, size: size.map(|size| size.0) };
            show::made(open(change.dry_run)?.vdi_snapshot(&sr, &vdi, &request)?, |vdi| vdi.uuid, json)
        }
        Vdi::Attach { sr, vdi, read_only, cache, change } => {
            let mut controller = open_with(change.dry_run, cache)?;
            show::attached(&controller.vdi_attach(&sr, &vdi, read_only)?, json)
        }
        Vdi::Detach { sr, vdi, change } => show::done(&open(change.dry_run)?.vdi_detach(&sr, &vdi)?, json),
        Vdi::Destroy { sr, vdi, change } => show::done(&open(change.dry_run)?.vdi_destroy(&sr, &vdi)?, json),
        Vdi::Forget { sr, template, change } => {
            show::done(&open(change.dry_run)?.vdi_forget(&sr, &template)?, json)
        }
        Vdi::Revert { sr, vdi, snapshot, change } => {
            show::done(&open(change.dry_run)?.vdi_revert(&sr, &vdi, &snapshot)?, json)
        }
        Vdi::Resize { sr, vdi, size, change } => {
            let mut controller = open(change.dry_run)?;
            let report = work::watched("zeroing", |work| controller.vdi_resize(&sr, &vdi, size.0, work))?;
            show::done(&report, json)
        }
        Vdi::Rename { sr, vdi, name, change } => {
            show::done(&open(change.dry_run)?.vdi_rename(&sr, &vdi, &name)?, json)
        }
        Vdi::Map { sr, vdi, cache } => {
            let server = host.server(Vec::new())?.with_cache(cache);
            map::show(&host.controller_with(false, server)?.vdi_map(&sr, &vdi)?, json)
        }
        Vdi::Diff { sr, a, b } => show::changed(&open(false)?.vdi_diff(&sr, &a, &b)?, json),
        Vdi::Localise { undo: true, sr, template, cache, change } => {
            let mut controller = open_with(change.dry_run, cache)?;
            show::done(&controller.vdi_localise_undo(&sr, &template)?, json)
        }
        Vdi::Localise { undo: false, sr, template, cache, change } => {
            let mut controller = open_with(change.dry_run, cache)?;
            let report = work::watched("copying", |work| controller.vdi_localise(&sr, &template, work))?;
            show::done(&report, json)
        }
        Vdi::Flatten { sr, vdi, cache, change } => {
            let mut controller = open_with(change.dry_run, cache)?;
            let report = work::watched("flattening", |work| controller.vdi_flatten(&sr, &vdi, work))?;
            show::done(&report, json)
        }
        Vdi::List { sr } => show::vdis(open(false)?.vdi_list(&sr)?, json),
        Vdi::Info { sr, vdi } => {
            let info = open(false)?.vdi_info(&sr, &vdi)?;
            let template = if info.location.is_some() { Some(info.uuid) } else { info.origin };
            let server = host.server(Vec::new())?;
            let local = template.and_then(|template| server.progress(template));
            show::vdi(info, local, json)
        }
    }
}

impl From<sr::Error> for Error {
    /// The sentence and its causes as one.
    fn from(error: sr::Error) -> Self {
        let message = error.with_causes();
        match error.kind {
            ErrorKind::Refused | ErrorKind::NotAttached => Error::refused(message),
            _ => Error::failed(message),
        }
    }
}

#[cfg(test)]
mod tests;
