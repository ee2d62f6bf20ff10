// What JupyterLab lacks for readers of this course, as an extension of its own kind:
//
// - a figure's alt text, which `course.figures.show` stores with the image, reaches
//   screen readers, and unfolds below the figure for everybody else;
// - on a dark page a figure is dimmed paper, with round corners, and no white slab;
// - a link to a section, on the same page or in a notebook, leads to that section.
//
// `python3 -m course lab` names this folder to JupyterLab; nothing is installed or
// built. JupyterLab shares its own modules with extensions, by name.
(() => {
  "use strict";

  const NAME = "gpt-by-hand";
  const PATIENCE = 30000; // milliseconds for a notebook to open
  let shared = {};

  const lab = async (name) => {
    const versions = Object.values(shared[name]); // JupyterLab itself brings one
    return (await versions[0].get())();
  };

  // --- Figures -----------------------------------------------------------------------

  const describedImages = (RenderedImage) =>
    class extends RenderedImage {
      async render(model) {
        await super.render(model);
        const alt = model.metadata[this.mimeType]?.alt ?? model.metadata.alt;
        const image = this.node.querySelector("img");
        if (!alt || !image) {
          return;
        }
        image.alt = alt;
        this.node.classList.add("gpt-by-hand-figure");
        const fold = document.createElement("details");
        const label = document.createElement("summary");
        const text = document.createElement("p");
        label.textContent = "Description of the figure";
        text.textContent = alt;
        fold.append(label, text);
        this.node.append(fold);
      }
    };

  const LOOK = `
    .gpt-by-hand-figure details { color: var(--jp-ui-font-color1); font-size: 0.9em; }
    .gpt-by-hand-figure summary { cursor: pointer; }
    .gpt-by-hand-figure p { margin: 0.3em 0 0.6em; max-width: 45em; }
    body[data-jp-theme-light="false"] .gpt-by-hand-figure img {
      border-radius: 6px;
      filter: brightness(0.82);
    }`;

  // --- Links to sections -------------------------------------------------------------

  const asGitHub = (heading) =>
    heading
      .toLowerCase()
      .replace(/[^\p{L}\p{M}\p{Nd}\p{Pc}\- ]/gu, "")
      .replaceAll(" ", "-");

  const isMeant = (element, anchor) => {
    const heading = element.textContent.replace(/\u00b6$/, "").trim();
    return [heading.replaceAll(" ", "-"), asGitHub(heading)].includes(anchor);
  };

  const headingIn = (node, anchor) =>
    [...node.querySelectorAll("h1, h2, h3, h4, h5, h6")].find((element) =>
      isMeant(element, anchor),
    );

  const soon = (milliseconds) =>
    new Promise((resolve) => setTimeout(resolve, milliseconds));

  const scrollTo = async (widget, anchor) => {
    const until = Date.now() + PATIENCE;
    let steady = 0;
    // Figures that arrive move the page: go there again until it stays.
    while (steady < 3 && Date.now() < until && !widget.isDisposed) {
      let heading = headingIn(widget.node, anchor);
      const cells = widget.content?.widgets;
      if (!heading && cells && widget.content.scrollToItem) {
        // A cell out of sight may not be on the page yet.
        const place = cells.findIndex(
          (cell) =>
            cell.model.type === "markdown" && headingIn(cell.node, anchor),
        );
        if (place >= 0) {
          await widget.content.scrollToItem(place, "start");
          heading = headingIn(cells[place].node, anchor);
        }
      }
      const before = heading?.getBoundingClientRect().top;
      heading?.scrollIntoView({ block: "start" });
      await soon(150);
      const after = heading?.getBoundingClientRect().top;
      steady = heading && Math.abs(after - before) < 2 ? steady + 1 : 0;
    }
  };

  // [path of a file of the course or "", section or ""] of a link as JupyterLab leaves it.
  const placeOf = (link) => {
    const written = link.getAttribute("href") ?? "";
    const anchor = decodeURIComponent(link.hash.slice(1));
    if (written.startsWith("#")) {
      return ["", anchor];
    }
    const config = document.getElementById("jupyter-config-data").textContent;
    const files = `${JSON.parse(config).baseUrl}files/`;
    const inside = link.origin === location.origin && link.pathname.startsWith(files);
    return [inside ? decodeURIComponent(link.pathname.slice(files.length)) : "", anchor];
  };

  const followLinks = (app, documents) => {
    const follow = async (path, anchor) => {
      const widget = documents.openOrReveal(path);
      if (widget) {
        await widget.revealed;
        await scrollTo(widget, anchor);
      }
    };
    document.addEventListener(
      "click",
      (event) => {
        const link = event.target.closest?.(".jp-RenderedMarkdown a");
        const plain = !(event.ctrlKey || event.metaKey || event.shiftKey || event.altKey);
        if (!link || !plain || event.button !== 0) {
          return;
        }
        const [path, anchor] = placeOf(link);
        const here = app.shell.currentWidget;
        if (path && anchor) {
          void follow(path, anchor);
        } else if (anchor && here && headingIn(here.node, anchor)) {
          void scrollTo(here, anchor);
        } else {
          return;
        }
        event.preventDefault();
        event.stopImmediatePropagation();
      },
      true,
    );
  };

  // --- As JupyterLab expects it ------------------------------------------------------

  const load = async () => {
    const { IRenderMimeRegistry, RenderedImage } = await lab("@jupyterlab/rendermime");
    const { IDocumentManager } = await lab("@jupyterlab/docmanager");
    const Described = describedImages(RenderedImage);
    const figures = {
      id: `${NAME}:figures`,
      autoStart: true,
      requires: [IRenderMimeRegistry],
      activate: (app, registry) => {
        const look = document.createElement("style");
        look.textContent = LOOK;
        document.head.append(look);
        registry.addFactory({
          safe: true,
          mimeTypes: ["image/png"],
          defaultRank: 90, // as JupyterLab's own
          createRenderer: (options) => new Described(options),
        });
      },
    };
    const links = {
      id: `${NAME}:links`,
      autoStart: true,
      requires: [IDocumentManager],
      activate: followLinks,
    };
    return () => ({ __esModule: true, default: [figures, links] });
  };

  window._JUPYTERLAB = window._JUPYTERLAB || {};
  window._JUPYTERLAB[NAME] = {
    init: (scope) => {
      shared = scope;
    },
    get: (module) => {
      if (module !== "./extension") {
        throw new Error(`${NAME} has no module ${module}`);
      }
      return load();
    },
  };
})();
