//! Recipes: small files of `runtimes/`, which travel inside the binary.

use std::sync::LazyLock;

use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::ImageError;

/// Changes when the builder makes something else of the same recipe.
const BUILDER: &str = "1";

/// What an image is made from.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// The image's name.
    pub name: &'static str,
    pub(crate) text: Text,
    /// Each file of the recipe: name and content.
    pub(crate) files: &'static [(&'static str, &'static str)],
}

/// `recipe.toml`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Text {
    pub(crate) description: String,
    pub(crate) runtime: String,
    pub(crate) suite: String,
    pub(crate) architecture: String,
    pub(crate) disk_mib: u64,
    pub(crate) packages: Vec<String>,
    pub(crate) check: String,
    #[serde(default)]
    pub(crate) steps: Vec<Step>,
}

/// A script that runs in the new root.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Step {
    pub(crate) title: String,
    pub(crate) script: String,
    /// What a line begins with that counts as progress.
    pub(crate) counts: String,
}

macro_rules! files {
    ($name:literal: $($file:literal)*) => {
        &[$(($file, include_str!(concat!("../../../runtimes/", $name, "/", $file)))),*]
    };
}

type Files = &'static [(&'static str, &'static str)];

const ALL: [(&str, Files); 3] = [
    ("python", files!("python": "recipe.toml" "requirements.txt" "install.sh" "compile.sh" "check.sh")),
    (
        "node",
        files!("node": "recipe.toml" "node.txt" "package.json" "package-lock.json" "node.sh" "packages.sh" "check.sh"),
    ),
    ("shell", files!("shell": "recipe.toml" "check.sh")),
];

static RECIPES: LazyLock<Vec<Recipe>> = LazyLock::new(|| {
    // A test holds that each of them can be read.
    ALL.into_iter().filter_map(|(name, files)| Recipe::new(name, files).ok()).collect()
});

/// Every recipe.
#[must_use]
pub fn recipes() -> &'static [Recipe] {
    &RECIPES
}

/// The recipe of this name.
///
/// # Errors
/// When there is none; says which there are.
pub fn recipe(name: &str) -> Result<&'static Recipe, ImageError> {
    let unknown = || {
        let names: Vec<_> = RECIPES.iter().map(|recipe| recipe.name).collect();
        ImageError::Unknown(name.to_owned(), names.join(", "))
    };
    RECIPES.iter().find(|recipe| recipe.name == name).ok_or_else(unknown)
}

impl Recipe {
    /// The recipe that these files are: names and contents, `recipe.toml` among them.
    ///
    /// # Errors
    /// Why `recipe.toml` cannot be understood.
    pub fn new(name: &'static str, files: Files) -> Result<Self, String> {
        let (_, text) = files.iter().find(|(file, _)| *file == "recipe.toml").ok_or("there is no recipe.toml")?;
        Ok(Self { name, text: toml::from_str(text).map_err(|error| error.to_string())?, files })
    }

    /// SHA-256 of all that the image is made from, in hexadecimal.
    #[must_use]
    pub fn digest(&self) -> String {
        let mut hash = Sha256::new();
        for part in [BUILDER, self.name].into_iter().chain(self.files.iter().flat_map(|(name, text)| [*name, *text])) {
            hash.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_le_bytes());
            hash.update(part.as_bytes());
        }
        hex::encode(hash.finalize())
    }

    /// What it is, in a few words.
    #[must_use]
    pub fn description(&self) -> &str {
        &self.text.description
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_recipe_can_be_read_and_names_files_that_travel_with_it() {
        assert_eq!(recipes().len(), ALL.len());
        for recipe in recipes() {
            let has = |name: &str| recipe.files.iter().any(|(file, _)| *file == name);
            assert!(recipe.text.steps.iter().all(|step| has(&step.script)), "{}", recipe.name);
            assert!(has(&recipe.text.check), "{}", recipe.name);
            assert_eq!(recipe.digest().len(), 64);
        }
    }
}
