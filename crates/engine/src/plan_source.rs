//! The frontend's questions about base images, answered by [`Resolved`].

use std::sync::Arc;

use kiln_frontend::{BoxError, MetaResolver, Resolved as Answer};
use kiln_graph::SourceOp;
use kiln_oci::Platform;

use crate::error::Error;
use crate::resolve::Resolved;

/// Answers from what was resolved.
pub struct Meta(pub Arc<Resolved>);

impl MetaResolver for Meta {
    fn resolve(&self, source: &SourceOp, platform: &Platform, _name: &str) -> Result<Answer, BoxError> {
        match source {
            SourceOp::Image(image) => {
                let known = self.0.image(&image.reference, platform, image.resolve)?;
                let mut pinned = image.clone();
                pinned.reference = image.reference.clone().with_default_tag();
                Ok(Answer { source: SourceOp::Image(pinned), config: known.config.clone() })
            }
            SourceOp::OciLayout(layout) => {
                let known = self.0.layout(layout, platform)?;
                let mut pinned = layout.clone();
                pinned.digest = Some(known.descriptor.digest);
                Ok(Answer { source: SourceOp::OciLayout(pinned), config: known.config.clone() })
            }
            SourceOp::Deb(spec) => {
                let config = self.0.deb_config(spec, platform)?;
                Ok(Answer { source: source.clone(), config })
            }
            other => Err(Box::new(Error::request(format!("{} is not an image", other.identifier())))),
        }
    }

    fn epoch(&self, source: &SourceOp) -> Result<Option<i64>, BoxError> {
        match source {
            SourceOp::Http(http) => match self.0.http_file(http)?.modified {
                Some(time) => Ok(Some(time.seconds())),
                None => Err(Box::new(Error::request("the server does not tell when the file was changed"))),
            },
            other => Err(Box::new(Error::request(format!(
                "the time of {} is not known to kiln: give seconds since 1970",
                other.identifier()
            )))),
        }
    }
}
