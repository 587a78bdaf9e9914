// Tables in text: values between commas (RFC 4180), semicolons or tabs.

/** The rows of a text, `most` at most, and whether there are more. A quote that is never closed ends with the text. */
export function parse(text: string, most = 1_000): { rows: string[][]; isCut: boolean } {
  const separator = guess(text);
  const rows: string[][] = [];
  let row: string[] = [];
  let value = "";
  let isQuoted = false;
  const end = () => {
    row.push(value);
    rows.push(row);
    [row, value] = [[], ""];
  };
  let at = text.startsWith("\ufeff") ? 1 : 0;
  for (; at < text.length && rows.length < most; at += 1) {
    const sign = text[at]!;
    if (isQuoted) {
      if (sign !== '"') value += sign;
      else if (text[at + 1] === '"') {
        value += '"';
        at += 1;
      } else isQuoted = false;
    } else if (sign === '"' && value === "") isQuoted = true;
    else if (sign === separator) {
      row.push(value);
      value = "";
    } else if (sign === "\n") end();
    else if (sign !== "\r" || text[at + 1] !== "\n") value += sign;
  }
  const isCut = at < text.length;
  if (!isCut && (value !== "" || row.length > 0)) end();
  return { rows, isCut };
}

/** The separator that the first line has most of. */
function guess(text: string): string {
  const line = text.slice(0, 10_000).split("\n", 1)[0] ?? "";
  const times = (sign: string) => line.split(sign).length;
  return [",", ";", "\t"].reduce((best, sign) => (times(sign) > times(best) ? sign : best));
}
