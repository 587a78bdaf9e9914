//! The console's files, as they are served: made from `console/` when this crate is built.
//!
//! ```text
//! console/  --npm ci, esbuild-->  OUT_DIR/site  --build.rs-->  ASSETS
//! ```
//!
//! Without npm there is one page in it, which says so. Nothing here serves anything.

/// One file.
#[derive(Clone, Copy, Debug)]
pub struct Asset {
    /// Where it is, below the console's address: `index.html`, `assets/main-K3J5.js`.
    pub path: &'static str,
    /// Its media type.
    pub kind: &'static str,
    /// Names its content: another one has another tag.
    pub tag: &'static str,
    /// Its bytes.
    pub plain: &'static [u8],
    /// The same, packed for those who accept `gzip`.
    pub gzip: Option<&'static [u8]>,
    /// The same, packed for those who accept `br`.
    pub brotli: Option<&'static [u8]>,
}

include!(concat!(env!("OUT_DIR"), "/assets.rs"));

/// The file at this path.
#[must_use]
pub fn find(path: &str) -> Option<&'static Asset> {
    ASSETS.iter().find(|asset| asset.path == path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_a_page_and_what_it_names_is_there() {
        let page = std::str::from_utf8(find("index.html").unwrap().plain).unwrap();
        assert!(page.contains("<title>Sandpool"), "{page}");
        let named = page.split("\"/console/").skip(1).filter_map(|rest| rest.split('"').next());
        for path in named.filter(|path| !path.is_empty()) {
            assert!(find(path).is_some(), "there is no {path}");
        }
        assert_eq!(IS_BUILT, page.contains(".js\""), "a build without npm has a page without scripts");
        assert!(find("assets/none.js").is_none());
    }

    #[test]
    fn a_name_with_a_hash_is_of_one_content_only() {
        let mut paths: Vec<_> = ASSETS.iter().map(|asset| asset.path).collect();
        paths.sort_unstable();
        paths.dedup();
        assert_eq!(paths.len(), ASSETS.len());
        for asset in ASSETS {
            assert!(!asset.plain.is_empty() && !asset.tag.is_empty(), "{}", asset.path);
            for packed in [asset.gzip, asset.brotli].into_iter().flatten() {
                assert!(packed.len() < asset.plain.len(), "{} is not smaller when it is packed", asset.path);
            }
        }
    }
}
