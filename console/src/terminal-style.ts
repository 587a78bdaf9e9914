// xterm.js writes its rules into <style> elements and its colours into style attributes, which the console's policy forbids: it allows no
// inline styles, whoever writes them. Both have a form that is allowed, through the object model, and get it here.

let isDone = false;

/** Makes `<style>` elements of scripts into constructed style sheets, and style attributes of scripts into properties. Once. */
export function looks(): void {
  if (isDone) return;
  isDone = true;
  const create = document.createElement.bind(document);
  document.createElement = ((name: string, options?: ElementCreationOptions) =>
    name.toLowerCase() === "style" ? styleElement(create) : create(name, options)) as typeof document.createElement;
  const setAttribute = Element.prototype.setAttribute;
  Element.prototype.setAttribute = function (this: Element, name: string, value: string) {
    if (name.toLowerCase() === "style" && this instanceof HTMLElement) this.style.cssText = value;
    else setAttribute.call(this, name, value);
  };
}

/** An element that stands for a style sheet: what is written into it is in force while it is in the document. */
function styleElement(create: typeof document.createElement): HTMLElement {
  const element = create("template") as HTMLElement;
  const sheet = new CSSStyleSheet();
  document.adoptedStyleSheets = [...document.adoptedStyleSheets, sheet];
  let text = "";
  Object.defineProperty(element, "textContent", {
    get: () => text,
    set: (rules: string) => {
      text = rules;
      sheet.replaceSync(rules);
    },
  });
  const remove = element.remove.bind(element);
  element.remove = () => {
    document.adoptedStyleSheets = document.adoptedStyleSheets.filter((one) => one !== sheet);
    remove();
  };
  return element;
}
