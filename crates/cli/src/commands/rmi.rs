//! `kiln rmi`, the same as `kiln image rm`.

use std::process::ExitCode;

use clap::Args;
use kiln_engine::images::{find, id};
use kiln_engine::oci::Reference;
use kiln_engine::store::{Image, Store};

use super::containers::made_from;
use crate::environment::Environment;
use crate::error::CliError;
use crate::output;

/// Remove names of images, and images that have no other name
///
/// What the build cache holds as well stays until `kiln prune`. An image that a container was made from needs --force; the
/// container keeps its files.
///
/// Examples:
///   kiln rmi app:old app:older
///   kiln rmi -f 3f2a91
///   kiln rmi $(kiln images -q --filter dangling=true)
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub struct RmiArgs {
    /// Images: names, or beginnings of IDs
    #[arg(required = true, value_name = "IMAGE", add = super::complete::images())]
    images: Vec<String>,
    /// By ID: remove all names of the image; also one that a container uses; do not fail for what is not there
    #[arg(short, long)]
    force: bool,
    /// Leave the content on disk; `kiln prune` removes it
    #[arg(long)]
    no_prune: bool,
}

/// Removes what is named, then the content that nothing leads to.
pub fn run(args: &RmiArgs, environment: &Environment) -> Result<ExitCode, CliError> {
    let store = environment.store()?;
    store.use_reserve();
    let mut failed: Option<CliError> = None;
    let mut gone = false;
    let many = store.images().many().map_err(kiln_engine::Error::from)?;
    for text in &args.images {
        match find(&store, text) {
            Ok(image) => match remove(&store, text, &image, args.force) {
                Ok(removed) => gone |= removed,
                Err(e) => {
                    if let Some(before) = failed.replace(e) {
                        before.show();
                    }
                }
            },
            Err(e) if args.force => CliError::from(e).show(),
            Err(e) => {
                if let Some(before) = failed.replace(e.into()) {
                    before.show();
                }
            }
        }
    }
    drop(many);
    if gone && !args.no_prune {
        store.collect().map_err(kiln_engine::Error::from)?;
    }
    failed.map_or(Ok(ExitCode::SUCCESS), Err)
}

/// Docker's rule: an image that a container was made from is removed only by force. The container keeps its files in any case.
fn refuse_if_used(store: &Store, text: &str, image: &Image) -> Result<(), CliError> {
    let Some(container) = made_from(store, &image.target)? else { return Ok(()) };
    let (name, id) = (&container.config.name, container.short_id());
    Err(CliError::failed(format!("unable to remove {text}: the container {name} ({id}) uses the image"))
        .with_hint("remove the container before, or the image with --force"))
}

/// Removes a name, or by ID all of them. Returns whether the image is gone.
fn remove(store: &Store, text: &str, image: &Image, force: bool) -> Result<bool, CliError> {
    let error = |e| CliError::from(kiln_engine::Error::from(e));
    let rows = store.images().of(&image.target.digest).map_err(error)?;
    let names: Vec<&Reference> = rows.iter().filter_map(|i| i.name.as_ref()).collect();
    if !force && names.len() < 2 {
        refuse_if_used(store, text, image)?;
    }
    let by_name = text.parse::<Reference>().ok().map(Reference::with_default_tag).filter(|n| names.contains(&n));
    match by_name {
        Some(name) => {
            store.images().remove(&name).map_err(error)?;
            output::print(&format!("Untagged: {}\n", name.familiar()))?;
            if names.len() > 1 {
                return Ok(false);
            }
        }
        None if names.len() > 1 && !force => {
            let list: Vec<String> = names.iter().map(|n| n.familiar()).collect();
            return Err(CliError::failed(format!("{text} has several names: {}", list.join(", ")))
                .with_hint("remove them by name, or all of them with --force"));
        }
        None => {
            store.images().remove_digest(&image.target.digest).map_err(error)?;
            let untagged: String = names.iter().map(|n| format!("Untagged: {}\n", n.familiar())).collect();
            output::print(&untagged)?;
        }
    }
    output::print(&format!("Deleted: {}\n", id(image)))?;
    Ok(true)
}
