// What the theme leaves to be desired for those who hear a page.
document.addEventListener("DOMContentLoaded", () => {
  for (const fold of document.querySelectorAll(".bd-sidebar-primary li details")) {
    const page = fold.parentElement.querySelector("a")?.textContent.trim();
    fold.querySelector("summary")?.setAttribute("aria-label", `Pages below ${page}`);
  }
  document
    .querySelector(".bd-sidebar-primary .navbar-brand")
    ?.parentElement.setAttribute("role", "banner");
});
