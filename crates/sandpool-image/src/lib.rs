//! Images: recipes, builds and the content store.
