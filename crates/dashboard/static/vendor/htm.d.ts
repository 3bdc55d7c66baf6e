// htm 3: a template tag over any `h`.
type Make<R> = (type: any, props: any, ...children: any[]) => R;
declare const htm: { bind<R>(h: Make<R>): (parts: TemplateStringsArray, ...values: unknown[]) => R };
export default htm;
