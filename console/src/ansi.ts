// Text with the escape sequences of terminals (ECMA-48), as pieces with a look. What is no colour or weight is left out.

export interface Piece {
  text: string;
  /** Names of classes, such as `fg-1 bold`. */
  look: string;
}

// eslint-disable-next-line no-control-regex -- control characters are what this is about
const SEQUENCE = /\x1b(?:\[([0-9;:]*)[ -/]*([@-~])|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])/g;
// eslint-disable-next-line no-control-regex
const CONTROL = /[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]/g;

interface Look {
  colour: number | null;
  isBold: boolean;
  isFaint: boolean;
  isItalic: boolean;
  isUnderlined: boolean;
}

const PLAIN: Look = { colour: null, isBold: false, isFaint: false, isItalic: false, isUnderlined: false };

/** The pieces of a text. */
export function pieces(text: string): Piece[] {
  const found: Piece[] = [];
  let look = PLAIN;
  let from = 0;
  const push = (to: number) => {
    const plain = overwritten(text.slice(from, to)).replace(CONTROL, "");
    if (plain) found.push({ text: plain, look: classes(look) });
  };
  for (const match of text.matchAll(SEQUENCE)) {
    push(match.index);
    from = match.index + match[0].length;
    if (match[2] === "m") look = changed(look, match[1] ?? "");
  }
  push(text.length);
  return found;
}

/** What is left of lines that were written over from their beginning, as progress bars do. */
function overwritten(text: string): string {
  if (!text.includes("\r")) return text;
  return text
    .replaceAll("\r\n", "\n")
    .split("\n")
    .map((line) => line.split("\r").reduce((before, now) => (now === "" ? before : now + before.slice(now.length)), ""))
    .join("\n");
}

function changed(before: Look, parameters: string): Look {
  let look = before;
  const numbers = parameters.split(/[;:]/).map((one) => Number(one || 0));
  for (let at = 0; at < numbers.length; at += 1) {
    const number = numbers[at]!;
    if (number === 0) look = PLAIN;
    else if (number === 1) look = { ...look, isBold: true };
    else if (number === 2) look = { ...look, isFaint: true };
    else if (number === 3) look = { ...look, isItalic: true };
    else if (number === 4) look = { ...look, isUnderlined: true };
    else if (number === 22) look = { ...look, isBold: false, isFaint: false };
    else if (number === 23) look = { ...look, isItalic: false };
    else if (number === 24) look = { ...look, isUnderlined: false };
    else if (number >= 30 && number <= 37) look = { ...look, colour: number - 30 };
    else if (number >= 90 && number <= 97) look = { ...look, colour: number - 90 };
    else if (number === 39) look = { ...look, colour: null };
    else if (number === 38 || number === 48) {
      // Of 256 colours, the first sixteen are known here.
      const colour = numbers[at + 2];
      if (number === 38 && numbers[at + 1] === 5 && colour !== undefined && colour < 16) look = { ...look, colour: colour % 8 };
      at += numbers[at + 1] === 2 ? 4 : 2;
    }
  }
  return look;
}

function classes(look: Look): string {
  const names = [
    look.colour === null ? "" : `fg-${look.colour}`,
    look.isBold ? "bold" : "",
    look.isFaint ? "faint" : "",
    look.isItalic ? "italic" : "",
    look.isUnderlined ? "underlined" : "",
  ];
  return names.filter(Boolean).join(" ");
}
