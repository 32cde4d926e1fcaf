//! `thinorigin list`: what lies below a prefix.

use super::args::List;
use super::reading;
use crate::error::Result;
use crate::output;
use crate::size::Size;
use backends::{Credentials, Entry, Options};
use serde::Serialize;

/// One name. `size` and `modified` are those of an object; a prefix has none.
#[derive(Serialize)]
struct Row {
    location: String,
    size: Option<u64>,
    modified: Option<String>,
}

impl From<Entry> for Row {
    fn from(entry: Entry) -> Row {
        match entry {
            Entry::Object { location, size, modified } => {
                let modified = Some(modified).filter(|modified| !modified.is_empty());
                Row { location: location.to_string(), size: Some(size), modified }
            }
            other => Row { location: other.location().to_string(), size: None, modified: None },
        }
    }
}

/// Lists the objects of a bucket directly below a prefix, and the prefixes of others.
pub(super) async fn run(args: List, json: bool) -> Result<()> {
    let location = reading::parse(&args.location)?;
    let credentials = Credentials::load(args.credentials.as_deref())?;
    let entries = backends::list(&location, &Options::default().with_credentials(credentials)).await?;
    let rows: Vec<Row> = entries.into_iter().map(Row::from).collect();
    if json {
        return output::json(&rows);
    }
    let cells = |row: &Row| {
        let size = row.size.map(|size| Size(size).to_string()).unwrap_or_default();
        vec![row.location.clone(), size, row.modified.clone().unwrap_or_default()]
    };
    output::table(&["location", "size", "modified"], rows.iter().map(cells))
}
