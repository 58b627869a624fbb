// The images of this session: a strip of small ones, and a dialog that shows one large. Nothing is stored: they go with the tab.

import { byId, element } from "./dom.js";
import { download } from "./picture.js";

/** Images that are kept; the oldest go first, so that a long session does not fill the memory. */
const KEPT = 100;

export class Gallery {
  #images = [];
  #visible = false;

  /** `strip` holds the small ones; `dialog` shows one; `onEdit(image)` is told which one to begin with. */
  constructor(strip, dialog, onEdit) {
    this.strip = strip;
    this.dialog = dialog;
    this.onEdit = onEdit;
    byId("viewer-close").addEventListener("click", () => dialog.close());
    dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  }

  /** Whether the strip is shown, once there is anything in it. */
  set visible(visible) {
    this.#visible = visible;
    this.strip.hidden = !visible || this.#images.length === 0;
  }

  /** Keeps {blob, prompt, seed, size, format}, the newest first; gives it with its `url`. */
  add(made) {
    const image = { ...made, url: URL.createObjectURL(made.blob) };
    image.node = element(
      "button",
      { type: "button", class: "thumb", title: image.prompt, on: { click: () => this.open(image) } },
      element("img", { src: image.url, alt: image.prompt }),
    );
    this.#images.unshift(image);
    this.strip.prepend(image.node);
    this.visible = this.#visible;
    for (const old of this.#images.splice(KEPT)) {
      old.node.remove();
      URL.revokeObjectURL(old.url);
    }
    return image;
  }

  /** Shows one large. */
  open(image) {
    byId("viewer-image").src = image.url;
    byId("viewer-image").alt = image.prompt;
    byId("viewer-prompt").textContent = image.prompt;
    byId("viewer-facts").textContent = `${image.size} · seed ${image.seed}`;
    byId("viewer-actions").replaceChildren(
      download(image),
      element(
        "button",
        {
          type: "button",
          class: "quiet",
          on: {
            click: () => {
              this.dialog.close();
              this.onEdit(image);
            },
          },
        },
        "Edit",
      ),
    );
    this.dialog.showModal();
  }
}
