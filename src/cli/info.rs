//! `thinorigin info`.

use super::args::OneImage;
use crate::error::Result;
use crate::image::Image;
use crate::output;
use crate::size::Size;
use serde::Serialize;

#[derive(Serialize)]
struct Info {
    location: String,
    format: String,
    virtual_size: u64,
    file_size: u64,
    identity: String,
    cluster_size: Option<u64>,
    chain: Vec<Link>,
    compressed: bool,
    encrypted: bool,
    features: Vec<String>,
    warnings: Vec<String>,
}

#[derive(Serialize)]
struct Link {
    location: String,
    format: String,
}

impl Info {
    fn of(image: &Image) -> Self {
        let mut layers = image.layers();
        let top = layers.next().map(|(_, layer)| layer.info().clone()).unwrap_or_default();
        let chain: Vec<Link> = image
            .layers()
            .map(|(location, layer)| Link {
                location: location.to_string(),
                format: layer.format().to_string(),
            })
            .collect();
        let identity = image.identities().next();
        Info {
            location: image.location().to_string(),
            format: chain.first().map(|link| link.format.clone()).unwrap_or_default(),
            virtual_size: image.virtual_size(),
            file_size: identity.map_or(0, |identity| identity.size),
            identity: identity.map(|identity| identity.validator.clone()).unwrap_or_default(),
            cluster_size: top.cluster_size,
            chain,
            compressed: top.compressed || image.through().iter().any(|step| !step.starts_with("tar ")),
            // An encrypted image is refused at open, so one that is open is not.
            encrypted: false,
            features: image.through().iter().cloned().chain(top.features).collect(),
            warnings: image.layers().flat_map(|(_, layer)| layer.info().warnings.clone()).collect(),
        }
    }
}

/// Describes an image.
pub(super) async fn run(args: OneImage, json: bool) -> Result<()> {
    let image = args.reading.open(&args.location).await?;
    let info = Info::of(&image);
    image.settle().await?;
    if json {
        return output::json(&info);
    }
    let mut rows = vec![
        ("location", info.location.clone()),
        ("format", info.format.clone()),
        ("virtual size", format!("{} ({} bytes)", Size(info.virtual_size), info.virtual_size)),
        ("file size", format!("{} ({} bytes)", Size(info.file_size), info.file_size)),
        ("identity", if info.identity.is_empty() { "none".into() } else { info.identity.clone() }),
    ];
    if let Some(cluster) = info.cluster_size {
        rows.push(("cluster size", Size(cluster).to_string()));
    }
    rows.push(("compressed", if info.compressed { "yes" } else { "no" }.into()));
    if !info.features.is_empty() {
        rows.push(("features", info.features.join(", ")));
    }
    for parent in info.chain.iter().skip(1) {
        rows.push(("parent", format!("{} ({})", parent.location, parent.format)));
    }
    for warning in &info.warnings {
        rows.push(("warning", warning.clone()));
    }
    for (name, value) in rows {
        output::line(&format!("{name:>12}  {value}"))?;
    }
    Ok(())
}
