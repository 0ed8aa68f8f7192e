//! Results: an image is put together from layers and config, then written where it was asked for.

mod ahead;
mod assemble;
mod files;
mod write;

pub use ahead::{Early, PushAhead};
pub use assemble::{Assembled, Documents, Parts, assemble};
pub(crate) use files::as_others;
pub use files::with_writer;
pub use write::{Exported, export, save_directory, target};
