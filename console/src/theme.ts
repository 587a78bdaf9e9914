// Runs before anything is drawn: the look that was chosen, if one was.

try {
  const chosen = localStorage.getItem("sandpool.theme");
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset["theme"] = chosen;
} catch {
  // Without storage it follows the system.
}

export {};
