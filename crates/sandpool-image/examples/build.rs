//! Builds images: `build DIRECTORY [NAME...]`.

use std::path::Path;
use std::process::ExitCode;

use sandpool_image::{ImageError, Progress, Store, recipes};

struct Lines;

impl Progress for Lines {
    fn stage(&self, title: &str, total: Option<u64>) {
        println!("{title}{}", total.map(|total| format!(" ({total})")).unwrap_or_default());
    }

    fn step(&self) {}
}

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let Some(directory) = args.next() else {
        eprintln!("build DIRECTORY [NAME...]");
        return ExitCode::from(2);
    };
    let names: Vec<String> = args.collect();
    let build = || -> Result<(), ImageError> {
        let store = Store::open(Path::new(&directory))?;
        for recipe in recipes().iter().filter(|recipe| names.is_empty() || names.iter().any(|name| name == recipe.name))
        {
            let image = store.build(recipe, &Lines)?;
            println!(
                "{}: {} {}, {} MiB",
                image.name,
                image.manifest.runtime,
                image.manifest.version,
                image.manifest.bytes >> 20
            );
        }
        Ok(())
    };
    match build() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
