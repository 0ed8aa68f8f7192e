//! `kiln rmi`, the same as `kiln image rm`.

use std::process::ExitCode;

use clap::Args;
use kiln_engine::container::Container;
use kiln_engine::images::{find, id};
use kiln_engine::oci::Reference;
use kiln_engine::store::{Image, Store};

use super::containers::{all, made_from};
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
    let removal = Removal { store: &store, containers: all(&store)?, force: args.force };
    let many = store.images().many().map_err(kiln_engine::Error::from)?;
    for text in &args.images {
        match find(&store, text) {
            Ok(image) => match removal.of(text, &image) {
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

struct Removal<'a> {
    store: &'a Store,
    containers: Vec<Container>,
    force: bool,
}

impl Removal<'_> {
    /// Removes a name, or by ID all of them. Returns whether the image is gone.
    fn of(&self, text: &str, image: &Image) -> Result<bool, CliError> {
        let error = |e| CliError::from(kiln_engine::Error::from(e));
        let images = self.store.images();
        let count = images.count_names(&image.target.digest).map_err(error)?;
        if !self.force && count < 2 {
            self.refuse_if_used(text, image)?;
        }
        if let Some(name) = text.parse::<Reference>().ok().map(Reference::with_default_tag)
            && image.name.as_ref() == Some(&name)
            && images.remove(&name).map_err(error)?.is_some()
        {
            output::print(&format!("Untagged: {}\n", name.familiar()))?;
            if count > 1 {
                return Ok(false);
            }
        } else {
            self.all_names(text, image)?;
        }
        output::print(&format!("Deleted: {}\n", id(image)))?;
        Ok(true)
    }

    fn all_names(&self, text: &str, image: &Image) -> Result<(), CliError> {
        let error = |e| CliError::from(kiln_engine::Error::from(e));
        let images = self.store.images();
        let rows = images.of(&image.target.digest).map_err(error)?;
        let names: Vec<String> = rows.iter().filter_map(|i| Some(i.name.as_ref()?.familiar())).collect();
        if names.len() > 1 && !self.force {
            return Err(CliError::failed(format!("{text} has several names: {}", names.join(", ")))
                .with_hint("remove them by name, or all of them with --force"));
        }
        images.remove_digest(&image.target.digest).map_err(error)?;
        output::print(&names.iter().map(|name| format!("Untagged: {name}\n")).collect::<String>())
    }

    /// Docker's rule: an image that a container was made from is removed only by force. The container keeps its files in any
    /// case.
    fn refuse_if_used(&self, text: &str, image: &Image) -> Result<(), CliError> {
        let Some(container) = made_from(self.store, &self.containers, &image.target)? else { return Ok(()) };
        let (name, id) = (&container.config.name, container.short_id());
        Err(CliError::failed(format!("unable to remove {text}: the container {name} ({id}) uses the image"))
            .with_hint("remove the container before, or the image with --force"))
    }
}
